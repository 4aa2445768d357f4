"""What a solve returns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastnode.plots import name_samples, new_figure, plot_trajectories
from fastnode.problem.ivp import State

#: Points of a curve that is drawn from dense output.
_CURVE = 400


@dataclass(frozen=True, eq=False)
class EventRecord:
    """Where an event happened: ``times`` [n], ``states`` [n, ...] (a tuple for a tuple state)."""

    times: Tensor
    states: State


@dataclass(frozen=True, eq=False)
class Steps:
    """The accepted steps of a solve, or of one of its samples.

    Args:
        times: where they begin and end, [N + 1], float64.
        error: local error of each in units of the tolerances, [N]; NaN for fixed steps.
        stiffness: h |lambda| over the length of the method's stability region, [N]: near 1 where
            stability limits the step, far below where accuracy does
            (fastnode/control/stiffness.py); NaN for methods that have no estimate.
        states: the states at ``times``, [N + 1, ...] (a tuple of such for a tuple state), if the
            solve saved them.
    """

    times: Tensor
    error: Tensor
    stiffness: Tensor
    states: State | None = None

    @property
    def h(self) -> Tensor:
        """Sizes of the steps, signed, [N]."""
        return self.times.diff()

    def __len__(self) -> int:
        return self.error.numel()


@dataclass(frozen=True)
class Table:
    """Named columns of one length; ``str`` aligns them as text."""

    columns: dict[str, list[Any]]

    def to_dict(self) -> dict[str, list[Any]]:
        return {name: list(values) for name, values in self.columns.items()}

    def __str__(self) -> str:
        cells = [[name, *map(_as_text, values)] for name, values in self.columns.items()]
        widths = [max(map(len, column)) for column in cells]
        lines = zip(*cells, strict=True)
        return "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            for line in lines
        )

    __repr__ = __str__


def _as_text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, eq=False)
class Solution:
    """The result of ``fastnode.solve``. With ``per_sample=True`` the counts are tensors [B], and
    ``status`` and ``steps`` lists with one entry for each sample.

    Args:
        ts: the caller's times, [T], or [B, T] if each sample has its own.
        ys: the states at these times, [T, *y0.shape] (a tuple of such for a tuple state), NaN where
            the solve ended before (an event, an error). With times [B, T] too: ys[j, b] is
            sample b at ts[b, j].
        status: "finished", "event", or the name of the error that ended the solve.
        nfe: evaluations of the vector field.
        accepted, rejected: steps.
        steps: each accepted step.
        events: where each of the caller's events happened.
        dense: what ``evaluate`` calls, or None if the solve did not save it.
    """

    ts: Tensor
    ys: Any
    status: str | list[str]
    nfe: int | Tensor
    accepted: int | Tensor
    rejected: int | Tensor
    steps: Steps | list[Steps]
    events: list[EventRecord] = field(default_factory=list)
    dense: Callable[[Tensor], Any] | None = None

    def evaluate(self, t: float | Tensor) -> Any:
        """The solution at any times of the interval by the method's own dense output.

        Args:
            t: a number or a tensor of any shape; of a per-sample solve a number, [T] or [B, T].

        Returns:
            [*t.shape, *y0.shape]; of a per-sample solve [T, *y0.shape] (no T for a number). The
            vector field is not called.

        Raises:
            ValueError: the solve was not run with ``save="dense"``, or a time lies outside the
                interval that was solved.
        """
        if self.dense is None:
            raise ValueError('evaluate needs a solve with save="dense"')
        return self.dense(torch.as_tensor(t, dtype=torch.float64, device=self._device()))

    def _device(self) -> torch.device:
        return self._samples()[0].times.device

    def _samples(self) -> list[Steps]:
        return self.steps if isinstance(self.steps, list) else [self.steps]

    @property
    def stats(self) -> Table:
        """One row for the solve, or for each sample: counts, sizes of the accepted steps, the
        largest error and stiffness, status."""
        steps = self._samples()
        sizes = [each.h.abs() for each in steps]
        counts = {
            name: value.tolist() if isinstance(value, Tensor) else [value]
            for name, value in (
                ("nfe", self.nfe),
                ("accepted", self.accepted),
                ("rejected", self.rejected),
            )
        }
        sample = {"sample": list(range(len(steps)))} if isinstance(self.steps, list) else {}
        return Table(
            {
                **sample,
                **counts,
                "h_min": [_reduce(torch.min, h) for h in sizes],
                "h_mean": [_reduce(torch.mean, h) for h in sizes],
                "h_max": [_reduce(torch.max, h) for h in sizes],
                "error_max": [_reduce(torch.max, each.error) for each in steps],
                "stiffness_max": [_reduce(torch.max, each.stiffness) for each in steps],
                "status": list(self.status) if isinstance(self.steps, list) else [self.status],
            }
        )

    def plot(self, samples: Sequence[int] | None = None) -> Any:
        """Steps taken, local error, step size and stiffness over time; returns the figure.

        Args:
            samples: which samples of a per-sample solve to draw; all if None.

        Raises:
            ImportError: matplotlib is not installed.
        """
        steps = self._samples()
        chosen = range(len(steps)) if samples is None else samples
        labels = ["steps", "error / tolerance", "h", "stiffness"]
        figure = new_figure("Solution.plot", 7, 8)
        axes = figure.subplots(len(labels), 1, sharex=True)
        for index in chosen:
            each = steps[index]
            times = each.times[1:].cpu()
            curves = [torch.arange(1, len(each) + 1), each.error, each.h.abs(), each.stiffness]
            for axis, curve in zip(axes, curves, strict=True):
                axis.plot(times, curve.cpu(), ".-", label=f"sample {index}")
        for axis, label in zip(axes, labels, strict=True):
            axis.set_ylabel(label)
        axes[2].set_yscale("log")
        axes[-1].set_xlabel("t")
        name_samples(axes[0], len(chosen))
        return figure

    def _ends(self) -> list[tuple[float, float]]:
        """First and last time of each sample; the last step may reach beyond an event."""
        ends = [(float(each.times[0]), float(each.times[-1])) for each in self._samples()]
        if self.status == "event":
            (first, last), happened = ends[0], torch.cat([each.times for each in self.events])
            ends = [(first, float(happened.max() if last > first else happened.min()))]
        return ends

    def plot_trajectories(
        self, components: Sequence[int] | None = None, samples: Sequence[int] | None = None
    ) -> Any:
        """The solution over time, or in phase space: see :func:`fastnode.plot_trajectories`.

        After a solve with ``save="dense"`` the curves are those of the dense output, else straight
        lines between the states at ``ts``.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: a state that is a tuple, more than two components, an index out of range.
        """
        if isinstance(self.ys, tuple):
            raise ValueError("the state is a tuple; give one of ys to fastnode.plot_trajectories")
        ts, ys = self.ts, self.ys
        if self.dense is not None:
            fine = [torch.linspace(*each, _CURVE, dtype=torch.float64) for each in self._ends()]
            ts = torch.stack(fine) if isinstance(self.steps, list) else fine[0]
            with torch.no_grad():
                ys = self.evaluate(ts)
        if isinstance(self.steps, list) and ys.dim() == 2:
            ys = ys.unsqueeze(-1)
        return plot_trajectories(ts, ys, components, samples)


def _reduce(function: Callable[[Tensor], Tensor], values: Tensor) -> float:
    return function(values).item() if values.numel() else math.nan
