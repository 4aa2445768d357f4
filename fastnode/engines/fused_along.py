"""Whole solves of multilayer perceptrons by given steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastnode.engines import fused
from fastnode.engines.perceptron import perceptron
from fastnode.solution import Solution, Steps
from fastnode.tableaus import Tableau


def solve_along(
    func: Any,
    y0: Any,
    ts: Tensor,
    tableau: Tableau,
    grid: Sequence[Any],
    max_num_steps: int,
    tape: bool,
    slots: int | None,
    forced: bool,
) -> Solution | None:
    """fastnode.solve with ``save="times"`` by steps from point to point of ``grid``, or None where
    this engine does not run it."""
    found = perceptron(func) if fused.runs_here() and not torch.compiler.is_compiling() else None
    # Between the ends of steps fastnode.solve has a cubic, for which other engines care.
    if found is None or not all(type(t) is float for t in grid):
        return None
    if not 1 < len(grid) <= max_num_steps + 1 or not set(ts.tolist()) <= set(grid):
        return None
    edges = torch.tensor(grid, dtype=torch.float64)
    result = fused.run(
        found, y0, ts, tableau, grid=edges, traced=True, tape=tape, slots=slots, forced=forced
    )
    if result is None:
        return None
    ys, _, evaluations, *_ = result
    steps, unknown = len(grid) - 1, torch.full((len(grid) - 1,), math.nan, dtype=torch.float64)
    return Solution(
        ts=ts,
        ys=ys,
        status="finished",
        nfe=evaluations,
        accepted=steps,
        rejected=0,
        steps=Steps(edges, unknown, unknown.clone(), None),
    )
