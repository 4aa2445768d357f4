"""The plots of the page of results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.reproduce.rows import Row

Found = list[tuple[Row, dict[str, Any] | None]]
Pictures = dict[str, list[tuple[str, str]]]


def draw(found: Found, folder: Path) -> Pictures:
    """Draws what there are rows for; file names and captions, by section."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pictures: Pictures = {}
    ended = [(row, c) for row, c in found if c is not None and "failed" not in c]

    def of(section: str) -> list[tuple[Row, dict[str, Any]]]:
        return [(row, content) for row, content in ended if row.section == section]

    def save(section: str, figure: Any, name: str, caption: str) -> None:
        figure.savefig(folder / name, dpi=80, bbox_inches="tight")
        pyplot.close(figure)
        pictures.setdefault(section, []).append((name, caption))

    for section in ("mnist-local", "physionet-local", "cifar10-local"):
        mine = [(row, content) for row, content in of(section) if row.group in COLOURS]
        if mine:
            figure, axes = pyplot.subplots(figsize=(6, 3))
            _training(axes, mine)
            save(section, figure, f"{section}.png", "NFE over training steps, one line for a seed")
    for section in ("mnist-simfree", "ablations"):
        if of(section):
            figure, axes = pyplot.subplots(figsize=(6, 3.4))
            _over_nfe(axes, of(section))
            save(section, figure, f"{section}.png", "Test accuracy over evaluations")
    if of("ablations"):
        figure, axes = pyplot.subplots(figsize=(6, 3.4))
        _losses(axes, of("ablations"))
        save("ablations", figure, "ablations-loss.png", "Training loss over steps")
    if of("uci"):
        names = list(dict.fromkeys(row.group.split()[0] for row, _ in of("uci")))
        figure, grid = pyplot.subplots(3, 3, figsize=(9, 7), squeeze=False)
        for axes, name in zip(grid.flat, names, strict=False):
            _rmse(axes, name, of("uci"))
        for axes in grid.flat[len(names) :]:
            axes.set_visible(False)
        grid[0][0].legend(fontsize=7)
        figure.tight_layout()
        save("uci", figure, "uci.png", "RMSE over evaluations, means over the splits that were run")
    return pictures


COLOURS = {"vanilla": "C0", "unbiased": "C1", "biased": "C2"}


def _training(axes: Any, found: list[tuple[Row, dict[str, Any]]]) -> None:
    for row, content in found:
        steps, nfe, _ = zip(*content["curve"], strict=True)
        label = row.group if row.index == 0 else None
        axes.plot(steps, nfe, color=COLOURS[row.group], label=label, lw=1)
    axes.set(xlabel="training step", ylabel="NFE of a training step")
    axes.legend()


def _over_nfe(axes: Any, found: list[tuple[Row, dict[str, Any]]]) -> None:
    for row, content in found:
        points = [
            (score["nfe"], 100 * score["accuracy"])
            for score in content["results"]["solvers"].values()
        ]
        axes.plot(*zip(*sorted(points), strict=True), marker=".", label=row.group, lw=1)
    axes.set(xlabel="NFE", ylabel="test accuracy, %", xscale="log")
    axes.legend(fontsize=7)


def _losses(axes: Any, found: list[tuple[Row, dict[str, Any]]]) -> None:
    for row, content in found:
        steps, _, loss = zip(*content["curve"], strict=True)
        axes.plot(steps, loss, label=row.group, lw=1)
    axes.set(xlabel="training step", ylabel="training loss", yscale="log")
    axes.legend(fontsize=7)


def _rmse(axes: Any, name: str, found: list[tuple[Row, dict[str, Any]]]) -> None:
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
