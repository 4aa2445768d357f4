"""Figures of README and docs as SVG, drawn from committed results without any library."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape

from bench.measured import Results, number

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#ff7f0e")
#: Others in grey.
BARS = {
    "torchdyn": "#dddddd",
    "torchode, compiled": "#c4c4c4",
    "diffrax, compiled": "#8f8f8f",
    "fastnode, field in Python": "#1f77b4",
    "fastnode, fused field": "#ff7f0e",
}
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#222}.small{font-size:11px;fill:#555}"
    ".axis{stroke:#bbb}.ground{fill:#fff}"
)


def svg(width: int, height: int, title: str, parts: list[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img">',
            f"<title>{escape(title)}</title><style>{STYLE}</style>",
            f'<rect class="ground" width="{width}" height="{height}"/>',
            *parts,
            "</svg>\n",
        ]
    )


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> str:
    name = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{name}>{escape(words)}</text>'


def speed(results: Results) -> str:
    """How many times faster than torchdiffeq, each within a run of its own, on a log scale."""
    groups: list[tuple[str, list[tuple[str, float]]]] = []
    for case in results.cases("odeint", "dopri5 tanh"):
        if case not in results.cases("fused", "forward tanh, 2 threads"):
            continue
        ratios = results.facts("odeint", "dopri5 tanh", case)["ratios"]
        ours = ratios["torchdiffeq"]
        fused = results.ratio("fused", "forward tanh, 2 threads", case, "torchdiffeq")
        bars = [(name, ours / ratios[name]) for name in BARS if name in ratios]
        bars += [("fastnode, field in Python", ours), ("fastnode, fused field", fused)]
        groups.append((case, bars))
    left, top, bar, gap, width = 150, 64, 17, 20, 520
    step = max(len(bars) for _, bars in groups) * bar + gap
    most = max(value for _, bars in groups for _, value in bars)
    decades = math.ceil(math.log10(most))

    def place(value: float) -> float:
        return left + max(math.log10(value), 0.0) / decades * width

    parts = [text(16, 24, "Times faster than torchdiffeq: dopri5, tolerance 1e-5, no gradients")]
    parts.append(text(16, 44, f"(state, hidden, batch); {results.device('odeint')}", kind="small"))
    height = top + len(groups) * step + 34
    for decade in range(decades + 1):
        x = place(10**decade)
        parts.append(
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - 34}"/>'
        )
        parts.append(text(x, height - 16, str(10**decade), "middle", "small"))
    for i, (case, bars) in enumerate(groups):
        y = top + 8 + i * step
        parts.append(text(left - 10, y + (step - gap) / 2 + 4, case, "end"))
        for j, (name, value) in enumerate(bars):
            end = max(place(value), left + 2)
            parts.append(
                f'<rect x="{left}" y="{y + j * bar:.1f}" width="{end - left:.1f}" '
                f'height="{bar - 3}" fill="{BARS[name]}"/>'
            )
            words = f"{number(value)}  {name}" if i == 0 else number(value)
            parts.append(text(end + 5, y + j * bar + 11, words, kind="small"))
    return svg(left + width + 160, height, "Times faster than torchdiffeq", parts)


def pairs(results: Results) -> str:
    """Four points and the partners to which three models carry them."""
    found = results.read("four_pairs")
    side, gap, top = 240, 24, 70
    parts = []
    for i, row in enumerate(found["rows"]):
        in_data_space = i < 2
        points = [point for line in row["lines"] for point in line]
        points += found["partners"] if in_data_space else []
        xs, ys = [[point[axis] for point in points] for axis in (0, 1)]
        scale = 0.84 * side / max(max(xs) - min(xs), max(ys) - min(ys))
        middle = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
        left = gap + i * (side + gap)

        def place(point, left=left, middle=middle, scale=scale) -> tuple[float, float]:
            x = left + side / 2 + scale * (point[0] - middle[0])
            return x, top + side / 2 - scale * (point[1] - middle[1])

        parts.append(
            f'<rect x="{left}" y="{top}" width="{side}" height="{side}" fill="none" class="axis"/>'
        )
        parts.append(text(left, 24, row["name"]))
        right = f"right: {row['right_one_step']} of 4 by one Euler step,"
        parts.append(text(left, 42, right, kind="small"))
        more = f"{row['right_dopri5']} of 4 by dopri5 in {row['nfe']} evaluations"
        parts.append(text(left, 58, more, kind="small"))
        for j, line in enumerate(row["lines"]):
            places = [place(point) for point in line]
            way = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            colour = COLOURS[j]
            parts.append(f'<polyline points="{way}" fill="none" stroke="{colour}"/>')
            (x, y), (x1, y1) = places[0], places[-1]
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>')
            parts.append(
                f'<rect x="{x1 - 4:.1f}" y="{y1 - 4:.1f}" width="8" height="8" fill="{colour}"/>'
            )
            if in_data_space:
                x, y = place(found["partners"][j])
                parts.append(
                    f'<rect x="{x - 7:.1f}" y="{y - 7:.1f}" width="14" height="14" fill="none" '
                    f'stroke="{colour}"/>'
                )
    words = "circle: start; square: end; open square: the partner, where the plane is the data's"
    parts.append(text(gap, top + side + 22, words, kind="small"))
    return svg(3 * (side + gap) + gap, top + side + 36, "Four pairs", parts)


BOXES = (
    ("face", "odeint, odeint_adjoint, odeint_event, odeint_dense, solve, fastnode.nn"),
    ("problem", "checks the arguments, packs the state into one buffer [batch, features]"),
    ("adjoint", "how gradients are made: backprop, checkpoint, Revolve, reversible, continuous"),
    (
        "engine",
        "the loop of steps: reference (PyTorch), native (C++), fused (whole solves), graph (CUDA)",
    ),
    ("op", "one pass each: stages, error norm, dense output, interpolant, flow loss, perceptron"),
    ("kernel", "C++ for three instruction sets, CUDA, Triton; pointers and sizes, no torch"),
    ("Solution", "states unpacked into the caller's form, steps, errors, stiffness, counts"),
)


def way(results: Results) -> str:
    """The one way through the library."""
    parts = []
    for i, (name, words) in enumerate(BOXES):
        y = 16 + 58 * i
        parts.append(
            f'<rect x="16" y="{y}" width="660" height="40" rx="5" fill="#eef4fb" stroke="#1f77b4"/>'
        )
        parts.append(text(30, y + 25, name))
        parts.append(text(110, y + 25, words, kind="small"))
        if i:
            parts.append(
                f'<path d="M340 {y - 18} v14 m-5 -5 l5 5 l5 -5" stroke="#555" fill="none"/>'
            )
    return svg(692, 16 + 58 * len(BOXES), "The one way through", parts)


FIGURES: dict[str, Callable[[Results], str]] = {
    "speed.svg": speed,
    "four_pairs.svg": pairs,
    "way.svg": way,
}
