"""Plots of trajectories. matplotlib is imported when one is drawn, and nothing is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

_MOST_NAMED = 10


def new_figure(caller: str, width: float, height: float) -> Any:
    """An empty matplotlib figure, in inches; ImportError that names the caller without it."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"{caller} needs matplotlib: pip install matplotlib") from error
    return Figure(figsize=(width, height), layout="constrained")


def name_samples(axes: Any, count: int) -> None:
    """A legend, unless there is one sample or so many that it would cover the plot."""
    if 1 < count <= _MOST_NAMED:
        axes.legend()


def plot_trajectories(
    ts: Tensor,
    ys: Tensor,
    components: Sequence[int] | None = None,
    samples: Sequence[int] | None = None,
) -> Any:
    """Draws what :func:`fastnode.odeint` returned: one component over time, or two as a phase plot.

    A phase plot shows one component over the other, with a circle where each trajectory begins.

    Args:
        ts: the times [T], or [B, T] with those of each sample.
        ys: the states at these times: [T], [T, D], or [T, B, D] for a batch of B samples.
        components: which one or two of the D components; may be left out if there are no more.
        samples: which of the B samples; all if None.

    Returns:
        The matplotlib figure; ``figure.savefig("name.png")`` writes it, notebooks show it.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: ts or ys is no tensor, or complex.
        ValueError: shapes that do not fit, more than two components, an index out of range.
    """
    for name, value in (("ts", ts), ("ys", ys)):
        if not isinstance(value, Tensor) or value.is_complex():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name} must be a real tensor, got {kind}")
    if ys.dim() not in (1, 2, 3):
        raise ValueError(f"ys must be [T], [T, D] or [T, B, D], got {list(ys.shape)}")
    states = ys.reshape(-1, 1, 1) if ys.dim() == 1 else ys.unsqueeze(1) if ys.dim() == 2 else ys
    count, batch, size = states.shape
    if tuple(ts.shape) not in ((count,), (batch, count)):
        raise ValueError(f"ts must be [{count}] or [{batch}, {count}], got {list(ts.shape)}")
    chosen = _indices("components", components, size)
    if len(chosen) not in (1, 2):
        raise ValueError(f"choose one or two of the {size} components, got {len(chosen)}")
    rows = _indices("samples", samples, batch)
    times = ts.detach().double().cpu().expand(batch, count)
    values = states.detach().double().cpu()

    phase = len(chosen) == 2
    figure = new_figure("plot_trajectories", *(5, 5) if phase else (7, 4))
    axes = figure.subplots()
    for row in rows:
        along = values[:, row, chosen].unbind(1)
        x, y = along if phase else (times[row], along[0])
        (line,) = axes.plot(x, y, label=f"sample {row}")
        if phase:
            axes.plot(x[:1], y[:1], "o", color=line.get_color())
    labels = ["y" if size == 1 else f"y[{index}]" for index in chosen]
    axes.set(xlabel=labels[0] if phase else "t", ylabel=labels[-1])
    name_samples(axes, len(rows))
    return figure


def _indices(name: str, chosen: Sequence[int] | None, size: int) -> list[int]:
    indices = list(range(size)) if chosen is None else [int(index) for index in chosen]
    for index in indices:
        if not 0 <= index < size:
            raise ValueError(f"{name} must lie in 0 to {size - 1}, got {index}")
    return indices
