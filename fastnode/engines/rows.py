"""What the engines of per-sample solves share: options in, trace out, and arithmetic on rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastnode.controllers import Controller
from fastnode.ops.rk_rows import rk_dense_rows, rk_stage_rows
from fastnode.samples import Tolerances
from fastnode.tableaus import Tableau, Weights


@dataclass(frozen=True)
class SampleOptions:
    tableau: Tableau
    controller: Controller
    tolerances: Tolerances
    #: A number, one per sample, or None to choose it at the cost of one evaluation.
    first_step: float | Tensor | None = None
    max_num_steps: int = 2**31 - 1
    keep_states: bool = False
    keep_slopes: bool = False
    #: Whether a sample that cannot go on raises; else the others are finished.
    throw: bool = True


@dataclass
class Trace:
    """What a per-sample solve leaves behind, the accepted steps in the order they were taken."""

    #: [T, B, D], NaN where a sample did not get.
    ys: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    status: list[str]
    #: Of each accepted step: whose it is, where it ends, its error and stiffness; the state at its
    #: end [M, D] and its slopes [stages, M, D] where they were asked for.
    sample: Tensor
    t1: Tensor
    error: Tensor
    stiffness: Tensor
    states: Tensor | None = None
    slopes: Tensor | None = None


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
    slopes = [k[stage] for stage, _ in tableau.dense_weights]
    return rk_dense_rows(y, slopes, torch.stack(weights, dim=1))
