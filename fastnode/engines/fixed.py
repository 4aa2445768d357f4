"""The loop over a given grid of steps, in pure PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fastnode.engines.step import StepFunction
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
    """Steps along ``grid``; returns [T, ...] at ``times``, which lie within it."""
    outputs = [y]
    for t, t1 in pairwise(grid):
        callbacks.step(t, y, t1 - t)
        made = step(field, t, t1, y, perturb)
        f1 = None
        while len(outputs) < len(times) and reached(t1, times[len(outputs)], field.direction):
            target = times[len(outputs)]
            if interp == "linear" or to_float(target) == to_float(t1):
                outputs.append(made.linear_at(target))
            else:
                if not made.k:
                    made.k.append(field(t, y, int(perturb)))
                f1 = field(t1, made.y1) if f1 is None else f1
                outputs.append(made.cubic_at(target, f1))
        y = made.y1
    return torch.stack(outputs)
