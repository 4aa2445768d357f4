"""Plots of the page of results, with matplotlib: each from the files of one folder, if they are
there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.results_file import Row

#: Of a case such as "(64, 128)" the numbers.
Case = tuple[int, ...]


def numbers(case: str) -> Case:
    return tuple(int(part) for part in case.strip("()").split(","))


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(max(x, 1e-16)) for x in values) / len(values))


def _drawn(path: Path, draw: Callable[[Any, Any], None], columns: int = 1) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, columns, figsize=(7 * max(1.0, 0.75 * columns), 4.5))
    draw(figure, axes)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def error_over_evaluations(rows: list[Row], path: Path) -> None:
    """Geometric means over the problems of DETEST, a line for each method."""

    def draw(_: Any, axes: Any) -> None:
        for i, method in enumerate(sorted({row["method"] for row in rows})):
            for library, dashes in (("fastnode", "-"), ("torchdiffeq", ":")):
                points = []
                for tolerance in sorted({row["tolerance"] for row in rows}):
                    chosen = [
                        row
                        for row in rows
                        if row["method"] == method
                        and row["tolerance"] == tolerance
                        and row["evaluations"].get(library)
                    ]
                    if chosen:
                        work = geometric_mean([row["evaluations"][library] for row in chosen])
                        error = geometric_mean([row["error"][library] for row in chosen])
                        points.append((work, error))
                if points:
                    label = f"{method}, {library}"
                    axes.loglog(*zip(*points, strict=True), dashes, color=f"C{i}", label=label)
        axes.set(xlabel="evaluations", ylabel="error", title="DETEST, 25 problems")
        axes.legend(fontsize=7)

    _drawn(path, draw)


def error_over_time(rows: list[Row], path: Path) -> None:
    """A line for each method and library, a point for each tolerance."""

    def draw(_: Any, axes: Any) -> None:
        methods = list(dict.fromkeys(row["subject"] for row in rows))
        dashes = {"fastnode": "-", "fastnode, fused": "--", "torchdiffeq": ":"}
        for i, subject in enumerate(methods):
            chosen = [row for row in rows if row["subject"] == subject]
            for name, style in dashes.items():
                ratios = [1.0 if name == "fastnode" else row["ratios"][name] for row in chosen]
                times = [
                    1e-3 * row["microseconds"] * ratio
                    for row, ratio in zip(chosen, ratios, strict=True)
                ]
                errors = [row["errors"][name] for row in chosen]
                label = f"{subject.rpartition(' ')[2]}, {name}"
                axes.loglog(times, errors, style, color=f"C{i}", marker=".", label=label)
        axes.set(xlabel="milliseconds", ylabel="error", title="(64, 128, 128), float64")
        axes.legend(fontsize=7)

    _drawn(path, draw)


def ratios_over_state_and_batch(rows: list[Row], path: Path) -> None:
    """Two maps: the fused and the native engine over torchdiffeq."""
    cases = {numbers(row["case"]): row for row in rows}
    states, batches = (sorted({case[i] for case in cases}) for i in (0, 1))

    def draw(figure: Any, both: Any) -> None:
        for axes, name in zip(both, ("fused", "native"), strict=True):
            grid = [[_over_torchdiffeq(cases[s, b], name) for b in batches] for s in states]
            shown = [[math.log10(x) for x in line] for line in grid]
            axes.imshow(shown, cmap="YlGn", vmin=0, vmax=2.5, aspect="auto")
            for i, line in enumerate(grid):
                for j, ratio in enumerate(line):
                    axes.text(j, i, f"{ratio:.3g}", ha="center", va="center")
            axes.set(xlabel="batch", ylabel="state", title=f"{name}: times faster than torchdiffeq")
            axes.set_xticks(range(len(batches)), batches)
            axes.set_yticks(range(len(states)), states)

    _drawn(path, draw, 2)


def _over_torchdiffeq(row: Row, name: str) -> float:
    ratio = row["ratios"]["torchdiffeq"]
    return ratio if name == "fused" else ratio / row["ratios"]["native"]


def memory_over_interval(rows: list[Row], path: Path) -> None:
    """Largest resident set of a process above what it held before."""

    def draw(_: Any, axes: Any) -> None:
        for row in rows:
            ends = [float(name.rpartition("= ")[2]) for name in row["megabytes"]]
            # What a process needs besides is of the order of a megabyte.
            values = [max(value, 0.5) for value in row["megabytes"].values()]
            axes.loglog(ends, values, marker=".", label=row["case"])
        axes.set(xlabel="length of the interval", ylabel="MB above the start")
        axes.set(title="forward and backward pass, (64, 128, 1024)")
        axes.legend(fontsize=7)

    _drawn(path, draw)


def share_of_copy_bandwidth(rows: list[Row], path: Path) -> None:
    """Of the eleven passes of the flow kernels, 1 where they are as fast as copies."""
    names = [row["case"] for row in rows]
    shares = [row["ratios"]["copies of as many bytes"] for row in rows]

    def draw(_: Any, axes: Any) -> None:
        axes.bar(names, shares)
        axes.axhline(1, color="grey", linewidth=1)
        axes.set(ylabel="share of the bandwidth of copies", title="flow kernels, float32")

    _drawn(path, draw)


def draw_all(rows: list[Row], detest: list[Row], out: Path) -> list[tuple[str, str, str]]:
    """Draws what there are results for: file, title and caption of each."""

    def of(subject: str, reference: str = "") -> list[Row]:
        found = [row for row in rows if row["subject"].startswith(subject)]
        return [row for row in found if not reference or reference in row["ratios"]]

    plots: list[tuple[str, Callable[[Any, Path], None], list, str]] = [
        ("work_precision", error_over_evaluations, detest, "Error over evaluations"),
        ("error_over_time", error_over_time, of("error over time"), "Error over time"),
        (
            "state_and_batch",
            ratios_over_state_and_batch,
            of("state and batch"),
            "Ratios over state and batch",
        ),
        ("memory", memory_over_interval, of("memory over interval"), "Memory over the interval"),
        (
            "bandwidth",
            share_of_copy_bandwidth,
            of("flow kernels", "copies of as many bytes"),
            "Bandwidth of the flow kernels against copies",
        ),
    ]
    drawn = []
    for name, draw, found, title in plots:
        if found:
            draw(found, out / f"{name}.png")
            drawn.append((f"{name}.png", title, (draw.__doc__ or "").strip()))
    return drawn
