"""STEER: a random end of the interval."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastnode.api.solve import solve
from fastnode.problem.ivp import State
from fastnode.regularize.base import Regularizer, no_penalty
from fastnode.regularize.schedules import check_weight
from fastnode.solution import Solution


class STEER(Regularizer):
    """The last time is drawn for each solve: T ~ U(t1 - b, t1 + b); there is no penalty.

    ``Solution.ts`` ends with T, and the last of ``Solution.ys`` is the state there.

    Args:
        b: half the width of the interval; below the distance of t1 to the time before it.
        generator: source of T.

    Source: A. Ghosh, H. Behl, E. Dupont, P. Torr, V. Namboodiri, STEER: Simple temporal
    regularization for neural ODEs, NeurIPS 2020, arXiv 2006.10711.
    """

    def __init__(self, b: float, generator: torch.Generator | None = None) -> None:
        super().__init__(generator)
        check_weight("b", b, above_zero=True)
        self.b = b

    def _solve(
        self, func: Callable[..., Any], y0: State, ts: Tensor, options: dict[str, Any]
    ) -> tuple[Solution, Tensor]:
        distance = ts.detach()[..., -2:].diff().abs().min().item()
        if not self.b < distance:
            raise ValueError(
                f"b must be below the distance of the last two times, {distance:g}, got {self.b}"
            )
        shift = (2 * self._uniform() - 1) * self.b
        last = ts[..., -1:] + shift.to(ts)
        solution = solve(func, y0, torch.cat([ts[..., :-1], last], dim=-1), **options)
        return solution, no_penalty(y0)

    def __repr__(self) -> str:
        return f"STEER(b={self.b})"
