"""The steps of a per-sample solve in batches: step w of every sample that took more than w."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastnode.samples import SampleProblem


@dataclass(eq=False)
class Wave:
    """Step w of the samples ``rows``, in the order of ``rows``.

    ``steps`` says which steps of the trace these are; output i of ``inner`` and ``columns`` is that
    of sample rows[inner[i]] at its time columns[i].
    """

    w: int
    rows: Tensor
    steps: Tensor
    t: Tensor
    t1: Tensor
    inner: Tensor
    columns: Tensor


def find_waves(problem: SampleProblem, accepted: Tensor, step_ends: Tensor) -> list[Wave]:
    """Sorts steps and output times by sample and by number; steps are those of a trace."""
    ts, direction = problem.ts.detach(), problem.direction
    counts = accepted.to(ts.device)
    first, start = counts.cumsum(0) - counts, ts[:, 0]
    ends = step_ends.detach().to(ts)
    # Which step each time lies in: the first whose end is at it or beyond.
    waves: list[Wave] = []
    pending = torch.ones_like(ts, dtype=torch.bool)
    pending[:, 0] = False
    for w in range(int(counts.max()) if counts.numel() else 0):
        rows = (counts > w).nonzero()[:, 0]
        steps = first[rows] + w
        t1 = ends[steps]
        due = pending[rows] & ((ts[rows] - t1[:, None]) * direction[rows, None] <= 0)
        inner, columns = due.nonzero().unbind(dim=1)
        pending[rows[inner], columns] = False
        waves.append(Wave(w, rows, steps, start[rows], t1, inner, columns))
        start = start.clone()
        start[rows] = t1
    return waves
