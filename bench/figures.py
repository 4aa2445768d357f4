"""The figures of README and docs as SVG, drawn by matplotlib from committed results.

Each file carries a digest of the data that it shows and of this module. By it `python -m
bench.tables --check` sees whether a figure is what the results say, whichever version of matplotlib
drew it.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measured import number
from bench.results_file import Results

#: Text stays text, and the same data give the same file.
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fastnode",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
SMALL, GREY = 8, "#555555"
#: Other libraries in grey.
BARS = {
    "torchdyn": "#dddddd",
    "torchode, compiled": "#c4c4c4",
    "diffrax, compiled": "#8f8f8f",
    "fastnode, field in Python": "#1f77b4",
    "fastnode, fused field": "#ff7f0e",
}
LAYERS = (
    ("face", "odeint, odeint_adjoint, odeint_event, odeint_dense, solve, fastnode.nn"),
    ("problem", "checks the arguments, packs the state into one buffer [batch, features]"),
    ("adjoint", "how gradients are made: backprop, checkpoint, Revolve, reversible, continuous"),
    ("engine", "the loop of steps: reference (PyTorch), native (C++), fused, one CUDA graph"),
    ("op", "one pass each: stages, error norm, dense output, interpolant, flow loss, MLP"),
    ("kernel", "C++ for three instruction sets, CUDA, Triton; pointers and sizes, no torch"),
    ("Solution", "states unpacked into the caller's form, steps, errors, stiffness, counts"),
)


def speed(results: Results) -> dict[str, Any]:
    """How many times faster than torchdiffeq, each within a run of its own."""
    groups = {}
    for case in results.cases("odeint", "dopri5 tanh"):
        if case not in results.cases("fused", "forward tanh, 2 threads"):
            continue
        ratios = results.row("odeint", "dopri5 tanh", case)["ratios"]
        ours = ratios["torchdiffeq"]
        fused = results.ratio("fused", "forward tanh, 2 threads", case, "torchdiffeq")
        bars = {name: ours / ratios[name] for name in BARS if name in ratios}
        groups[case] = bars | {"fastnode, field in Python": ours, "fastnode, fused field": fused}
    return {"machine": results.read("odeint").machine, "groups": groups}


def draw_speed(figure: Any, data: dict[str, Any]) -> None:
    groups = data["groups"]
    figure.set_size_inches(8.5, 0.7 + 0.22 * sum(len(bars) + 1 for bars in groups.values()))
    axes = figure.subplots()
    places, top = {}, 0
    for case, bars in groups.items():
        places[case] = top + (len(bars) - 1) / 2
        for i, (name, ratio) in enumerate(bars.items()):
            axes.barh(top + i, ratio, height=0.85, color=BARS[name])
            words = f"{number(ratio)}  {name}" if top == 0 else number(ratio)
            axes.annotate(
                words,
                (max(ratio, 1), top + i),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=SMALL,
            )
        top += len(bars) + 1
    most = max(ratio for bars in groups.values() for ratio in bars.values())
    axes.set(xscale="log", xlim=(1, 10 ** math.ceil(math.log10(most))), ylim=(top - 1, -1))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(list(places.values()), list(places))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    axes.set_title(
        "Times faster than torchdiffeq: dopri5, tolerance 1e-5, no gradients\n"
        f"(state, hidden, batch); {data['machine']}",
        loc="left",
        fontsize=10,
    )


def four_pairs(results: Results) -> dict[str, Any]:
    """Four points and the partners to which three models carry them."""
    run = results.read("four_pairs")
    return {"partners": run.head["partners"], "models": run.rows}


def draw_four_pairs(figure: Any, data: dict[str, Any]) -> None:
    figure.set_size_inches(8.5, 3.6)
    for i, (axes, model) in enumerate(zip(figure.subplots(1, 3), data["models"], strict=True)):
        for j, line in enumerate(model["lines"]):
            color = f"C{j}"
            axes.plot(*zip(*line, strict=True), color=color, lw=1)
            axes.plot(*line[0], "o", color=color)
            axes.plot(*line[-1], "s", color=color)
            # The plane of the first two models is that of the data.
            if i < 2:
                axes.plot(*data["partners"][j], "s", color=color, ms=12, mfc="none")
        axes.set_aspect("equal", adjustable="datalim")
        axes.set(xticks=[], yticks=[])
        axes.margins(0.12)
        axes.spines[:].set_visible(True)
        axes.spines[:].set_color("#bbbbbb")
        axes.set_title(
            f"{model['name']}\nright: {model['right_one_step']} of 4 by one Euler step,\n"
            f"{model['right_dopri5']} of 4 by dopri5 in {model['nfe']} evaluations",
            loc="left",
            fontsize=SMALL,
        )
    words = "circle: start; square: end; open square: the partner, where the plane is the data's"
    figure.supxlabel(words, fontsize=SMALL, color=GREY)


def path_through(results: Results) -> list[tuple[str, str]]:
    """The layers that a call passes through, in order."""
    return list(LAYERS)


def draw_path_through(figure: Any, data: list[tuple[str, str]]) -> None:
    from matplotlib.patches import FancyBboxPatch

    figure.set_size_inches(8, 0.6 * len(data))
    axes = figure.subplots()
    axes.set(xlim=(0, 100), ylim=(len(data) - 0.5, -0.5))
    axes.axis("off")
    look = {"boxstyle": "round,pad=0,rounding_size=0.1", "fc": "#eef4fb", "ec": "#1f77b4"}
    for i, (name, words) in enumerate(data):
        axes.add_patch(FancyBboxPatch((1, i - 0.33), 98, 0.66, **look))
        axes.text(3, i, name, va="center")
        axes.text(16, i, words, va="center", fontsize=SMALL, color=GREY)
        if i:
            arrow = {"arrowstyle": "->", "color": GREY, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", (50, i - 0.33), (50, i - 0.67), arrowprops=arrow)


@dataclass(frozen=True)
class Figure:
    """One figure: what it shows, as JSON can hold it, and how that is drawn."""

    data: Callable[[Results], Any]
    draw: Callable[[Any, Any], None]

    def digest(self, results: Results) -> str:
        shown = json.dumps(self.data(results)).encode()
        return hashlib.sha256(shown + Path(__file__).read_bytes()).hexdigest()

    def svg(self, results: Results) -> str:
        import matplotlib
        from matplotlib.figure import Figure as Canvas

        with matplotlib.rc_context(STYLE):
            figure, out = Canvas(layout="constrained"), io.StringIO()
            self.draw(figure, self.data(results))
            about = {"Date": None, "Creator": None, "Identifier": self.digest(results)}
            figure.savefig(out, format="svg", metadata=about)
        # On one line: nobody reads the two thousand lines of paths and styles.
        return " ".join(out.getvalue().split()) + "\n"


FIGURES = {
    "speed.svg": Figure(speed, draw_speed),
    "four_pairs.svg": Figure(four_pairs, draw_four_pairs),
    "path_through.svg": Figure(path_through, draw_path_through),
}
