"""The loop over a given grid of steps, in pure PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fastnode.engines.step import take_step
from fastnode.problem import NO_CALLBACKS, Callbacks, Time, VectorField, reached, to_float
from fastnode.tableaus import Tableau


def integrate_fixed(
    field: VectorField,
    tableau: Tableau,
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
        f = field(t, y, 1 if perturb else 0)
        step = take_step(field, tableau, t, t1, y, f, perturb)
        f1 = None
        while len(outputs) < len(times) and reached(t1, times[len(outputs)], field.direction):
            target = times[len(outputs)]
            if interp == "linear" or to_float(target) == to_float(t1):
                outputs.append(step.linear_at(target))
            else:
                f1 = field(t1, step.y1) if f1 is None else f1
                outputs.append(step.cubic_at(target, f1))
        y = step.y1
    return torch.stack(outputs)
