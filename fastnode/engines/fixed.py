"""The loop over a given grid of steps, in pure PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fastnode.engines.step import Step, StepFunction
from fastnode.problem import NO_CALLBACKS, Callbacks, Time, VectorField, reached, to_float


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
        inside = continuation(made, interp, perturb)
        while len(outputs) < len(times) and reached(t1, times[len(outputs)], field.direction):
            target = times[len(outputs)]
            outputs.append(made.y1 if to_float(target) == to_float(t1) else inside(target))
    return torch.stack(outputs)


def continuation(step: Step, interp: str, perturb: bool) -> Callable[[Time], Tensor]:
    """The solution inside a step; slopes that a cubic needs are evaluated at its first use."""
    slopes: list[Tensor] = []

    def cubic(t: Time) -> Tensor:
        if not step.k:
            step.k.append(step.field(step.t, step.y, int(perturb)))
        if not slopes:
            slopes.append(step.field(step.t1, step.y1))
        return step.cubic_at(t, slopes[0])

    return step.linear_at if interp == "linear" else cubic
