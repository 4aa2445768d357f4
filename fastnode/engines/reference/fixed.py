"""The loop over fixed steps, in pure PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fastnode.engines.reference.step import Step, StepFunction
from fastnode.errors import MaxStepsExceeded
from fastnode.ops.rk_stage import rk_stage
from fastnode.problem.ivp import NO_CALLBACKS, Callbacks, Time, VectorField, reached, to_float


class GridStep:
    """A step of a fixed-step method from (t, y) to (t1, y1). Inside it the solution is a straight
    line, or the cubic with the values and derivatives at both ends; derivatives that the method has
    not evaluated are evaluated when they are first needed."""

    error = math.nan

    def __init__(self, step: Step, interp: str = "cubic", perturb: bool = False):
        self.field, self.t, self.t1 = step.field, step.t, step.t1
        self.y, self.y1, self.k = step.y, step.y1, step.k
        self.derivative_at_end: Tensor | None = None
        self._interp, self._perturb = interp, perturb

    def at(self, t: Time) -> Tensor:
        at_end = to_float(t) == to_float(self.t1)
        if at_end and (t is self.t1 or not isinstance(t, Tensor)):
            return self.y1
        h = self.t1 - self.t
        if self._interp == "linear":
            rise = self.y1 - self.y
            # Beside the value at the end the derivative with respect to t counts.
            if at_end:
                return rk_stage(self.y1, [rise], [(t - self.t1) / h])
            # Not y + x (...): a time with a gradient would give a scalar state its own dtype.
            return rk_stage(self.y, [rise], [(t - self.t) / h])
        if self.derivative_at_end is None:
            self.derivative_at_end = self.field(self.t1, self.y1)
        if at_end:
            return rk_stage(self.y1, [self.derivative_at_end], [t - self.t1])
        x = (t - self.t) / h
        if not self.k:
            self.k.append(self.field(self.t, self.y, int(self._perturb)))
        rise, square = x * x * (3 - 2 * x), x * (1 - x)
        derivatives = [self.y1 - self.y, self.k[0], self.derivative_at_end]
        return rk_stage(self.y, derivatives, [rise, h * square * (1 - x), -h * square * x])


def integrate_fixed(
    field: VectorField,
    step: StepFunction,
    y: Tensor,
    times: Sequence[Time],
    grid: Sequence[Time],
    *,
    interp: str = "linear",
    perturb: bool = False,
    callbacks: Callbacks = NO_CALLBACKS,
) -> Tensor:
    """Steps along ``grid``; returns [T, ...] at ``times``, which lie within it or are the grid."""
    outputs = [y]
    for t, t1 in pairwise(grid):
        callbacks.step(t, y, t1 - t)
        made = step(field, t, t1, y, perturb)
        y = made.y1
        if grid is times:
            outputs.append(y)
            continue
        inside = GridStep(made, interp, perturb)
        while len(outputs) < len(times) and reached(t1, times[len(outputs)], field.direction):
            outputs.append(inside.at(times[len(outputs)]))
    return torch.stack(outputs)


class GridStepper:
    """Steps of a method along ``grid``."""

    def __init__(
        self,
        field: VectorField,
        step: StepFunction,
        y: Tensor,
        grid: Sequence[Time],
        max_num_steps: int,
        interp: str = "cubic",
        perturb: bool = False,
    ):
        self.field, self.step, self.grid = field, step, grid
        self.interp, self.perturb = interp, perturb
        self.max_num_steps = max_num_steps
        self.t, self.y = grid[0], y
        self.attempts = 0
        self.rejected = 0
        self._last: GridStep | None = None

    def advance(self) -> GridStep:
        """Takes the next step of the grid.

        Raises:
            MaxStepsExceeded: that would be one too many.
        """
        t, t1 = self.t, self.grid[self.attempts + 1]
        if self.attempts >= self.max_num_steps:
            start = to_float(t)
            raise MaxStepsExceeded(
                f"max_num_steps exceeded: {self.attempts} steps taken by t = {start:g}",
                time=start,
                step=to_float(t1) - start,
            )
        self.attempts += 1
        made = GridStep(
            self.step(self.field, t, t1, self.y, self.perturb), self.interp, self.perturb
        )
        if self._last is not None and made.k:
            # The derivative at the start of this step is that at the end of the one before.
            self._last.derivative_at_end = made.k[0]
        self._last = made
        self.t, self.y = t1, made.y1
        return made
