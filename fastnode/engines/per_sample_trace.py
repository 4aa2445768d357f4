"""What the engines of per-sample stepping share: the trace, and arithmetic on rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from fastnode.control.request import SolveRequest
from fastnode.ops.rk_rows import rk_dense_rows, rk_stage_rows
from fastnode.problem.batch import SampleProblem, Tolerances
from fastnode.tableaus import Tableau, Weights


@dataclass(eq=False)
class Trace:
    """What a per-sample solve leaves behind: of its steps those of the first sample, in the order
    they were taken, then those of the second, and so on."""

    #: [T, B, D], NaN where a sample did not get.
    ys: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    #: Numbers of Failure, int8 [B] on the device: names are made for those who read them alone.
    status: Tensor
    #: Of each accepted step where it ends, its error and stiffness; the state at its end [M, D]
    #: and its derivatives [stages, M, D] where they were asked for.
    t1: Tensor
    error: Tensor
    stiffness: Tensor
    states: Tensor | None = None
    derivatives: Tensor | None = None


@dataclass(eq=False)
class Batch:
    """The samples in the batch: row r is sample index[r]; finished ones stand still."""

    index: Tensor
    t: Tensor
    y: Tensor
    f: Tensor
    h: Tensor
    end: Tensor
    ts: Tensor
    direction: Tensor
    before: Tensor
    earlier: Tensor
    pending: Tensor
    attempts: Tensor
    running: Tensor
    #: See ``control.controllers.FUTILE``.
    longest: Tensor
    blown: Tensor
    futile: Tensor
    tolerances: Tolerances
    args: tuple[Any, ...]

    def take(self, rows: Tensor, problem: SampleProblem) -> Batch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in values.items():
            if isinstance(value, Tensor):
                values[name] = value[rows]
        values["tolerances"] = self.tolerances.take(rows)
        values["args"] = problem.take_args(self.args, rows)
        return Batch(**values)


def combine_rows(y: Tensor, k: Sequence[Tensor], h: Tensor, weights: Weights) -> Tensor:
    """y + h sum_j w_j k_j with a step h [b] for each row."""
    return rk_stage_rows(y, [k[j] for j in weights.stages], weights.values, h)


def interpolate_rows(
    tableau: Tableau, y: Tensor, k: Sequence[Tensor], h: Tensor, elapsed: Tensor
) -> Tensor:
    """The method's dense output, ``elapsed`` [b] after the beginning of steps h [b]."""
    x = elapsed / h
    weights = []
    for _, coefficients in tableau.dense_weights:
        total = coefficients[-1] * x
        for coefficient in reversed(coefficients[:-1]):
            total = (total + coefficient) * x
        weights.append(h * total)
    derivatives = [k[stage] for stage, _ in tableau.dense_weights]
    return rk_dense_rows(y, derivatives, torch.stack(weights, dim=1))


def trace_without_steps(problem: SampleProblem, request: SolveRequest) -> Trace:
    """A solve at one time, which costs no evaluation."""
    y0, numbers = problem.y0, problem.direction[:0]
    zero = torch.zeros(y0.shape[0], dtype=torch.int64, device=y0.device)
    stages = len(request.tableau.a) + len(request.tableau.further)
    return Trace(
        y0[None].clone(),
        zero,
        zero,
        zero,
        zero.to(torch.int8),
        numbers,
        numbers,
        numbers,
        states=y0[:0] if request.keep_states else None,
        derivatives=y0.new_empty(stages, 0, y0.shape[1]) if request.keep_derivatives else None,
    )
