"""The plots of the page of results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.reproduce.rows import Row

Found = list[tuple[Row, dict[str, Any] | None]]
Runs = list[tuple[Row, dict[str, Any]]]
Pictures = dict[str, list[tuple[str, str]]]

LOCAL = ("mnist-local", "physionet-local", "cifar10-local")


def reads_curve(row: Row) -> bool:
    """Whether a plot shows the row's training."""
    return row.section in (*LOCAL, "ablations")


def pictures(found: Found) -> Pictures:
    """File names and captions of the plots that there are rows for, by section."""
    shown: Pictures = {}
    for section in dict.fromkeys(row.section for row, _ in _of(found)):
        if section in LOCAL:
            caption = "NFE over training steps, one line for a seed"
            shown[section] = [(f"{section}.png", caption)]
        elif section in ("mnist-simfree", "ablations"):
            shown[section] = [(f"{section}.png", "Test accuracy over evaluations")]
        elif section == "uci":
            caption = "RMSE over evaluations, means over the splits that were run"
            shown[section] = [("uci.png", caption)]
    if "ablations" in shown:
        shown["ablations"].append(("ablations-loss.png", "Training loss over steps"))
    return shown


def draw(found: Found, folder: Path) -> None:
    """Draws what `pictures` names."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    for section, files in pictures(found).items():
        mine = _of(found, section)
        for name, _ in files:
            if section == "uci":
                figure = _uci(pyplot, mine)
            else:
                figure, axes = pyplot.subplots(figsize=(6, 3.2))
                by_section = _training if section in LOCAL else _over_nfe
                (_losses if name == "ablations-loss.png" else by_section)(axes, mine)
            figure.savefig(folder / name, dpi=80, bbox_inches="tight")
            pyplot.close(figure)


def _of(found: Found, section: str | None = None) -> Runs:
    """The runs that ended, of a section if one is named."""
    return [
        (row, content)
        for row, content in found
        if content is not None and "failed" not in content and section in (None, row.section)
    ]


def _uci(pyplot: Any, found: Runs) -> Any:
    names = list(dict.fromkeys(row.group.split()[0] for row, _ in found))
    figure, grid = pyplot.subplots(3, 3, figsize=(9, 7), squeeze=False)
    for axes, name in zip(grid.flat, names, strict=False):
        _rmse(axes, name, found)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    grid[0][0].legend(fontsize=7)
    figure.tight_layout()
    return figure


COLOURS = {"vanilla": "C0", "unbiased": "C1", "biased": "C2"}


def _training(axes: Any, found: Runs) -> None:
    for row, content in found:
        if row.group not in COLOURS:
            continue
        steps, nfe, _ = zip(*content["curve"], strict=True)
        label = row.group if row.index == 0 else None
        axes.plot(steps, nfe, color=COLOURS[row.group], label=label, lw=1)
    axes.set(xlabel="training step", ylabel="NFE of a training step")
    axes.legend()


def _over_nfe(axes: Any, found: Runs) -> None:
    for row, content in found:
        points = [
            (score["nfe"], 100 * score["accuracy"])
            for score in content["results"]["solvers"].values()
        ]
        axes.plot(*zip(*sorted(points), strict=True), marker=".", label=row.group, lw=1)
    axes.set(xlabel="NFE", ylabel="test accuracy, %", xscale="log")
    axes.legend(fontsize=7)


def _losses(axes: Any, found: Runs) -> None:
    for row, content in found:
        steps, _, loss = zip(*content["curve"], strict=True)
        axes.plot(steps, loss, label=row.group, lw=1)
    axes.set(xlabel="training step", ylabel="training loss", yscale="log")
    axes.legend(fontsize=7)


def _rmse(axes: Any, name: str, found: Runs) -> None:
    for method in ("simfree", "node", "steer", "rnode"):
        mine = [content for row, content in found if row.group == f"{name} {method}"]
        if not mine:
            continue
        solvers = list(mine[0]["results"]["solvers"])
        nfe, rmse = (
            [sum(c["results"]["solvers"][s][key] for c in mine) / len(mine) for s in solvers]
            for key in ("nfe", "rmse")
        )
        axes.plot(nfe, rmse, marker=".", label=method, lw=1)
    axes.set(title=name, xscale="log")
    axes.set_xlabel("NFE", fontsize=8)
