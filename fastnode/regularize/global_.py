"""Global regularisation: the errors, or the stiffness, of all steps of the solve."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastnode import embedded
from fastnode.embedded import find_tableau
from fastnode.norms import ErrorNorm
from fastnode.ops.rk_error import rk_error
from fastnode.problem import State, make_problem, to_float
from fastnode.regularize.base import Regularizer, check_kind, needs_error_estimate
from fastnode.regularize.schedules import Schedule, as_schedule
from fastnode.solution import Solution
from fastnode.solve import solve


class Global(Regularizer):
    """sum_j E_j |dt_j| or sum_j S_j |dt_j| over the accepted steps of the solve.

    E and S are those of ``fastnode.embedded_step``. The gradient goes through the whole solve, so
    it needs the graph of all its steps: ``adjoint="backprop"``. The sizes of the steps are
    constants.

    Args:
        kind: "error" or "stiffness".
        weight: a number or a ``Schedule``.

    Raises:
        ValueError: an unknown kind or a weight below 0; in ``solve``, another adjoint, a method
            without the estimate, or ``per_sample=True``.

    Source: A. Pal, Y. Ma, V. Shah, C. Rackauckas, Opening the blackbox: accelerating neural
    differential equations by regularizing internal solver heuristics, ICML 2021, arXiv 2105.03918.
    """

    def __init__(self, kind: str = "error", weight: float | Schedule = 1.0) -> None:
        super().__init__()
        check_kind(kind, "tsit5")
        self.kind, self.weight = kind, as_schedule("weight", weight)

    def check(self, method: str) -> None:
        super().check(method)
        needs_error_estimate(method, "Global")
        check_kind(self.kind, method)

    def _solve(
        self, func: Callable[..., Any], y0: State, ts: Tensor, options: dict[str, Any]
    ) -> tuple[Solution, Tensor]:
        adjoint = options.get("adjoint", "backprop")
        if adjoint != "backprop":
            raise ValueError(
                "Global needs the gradients of every step of the solve, so adjoint='backprop', "
                f"got {adjoint!r}; Local works with every adjoint"
            )
        if options.get("per_sample"):
            raise ValueError("Global needs per_sample=False, got True; Local works with both")
        problem = make_problem(func, y0, ts, tuple(options.get("args", ())))
        tableau = find_tableau(options["method"])
        norm = ErrorNorm(problem.layout, problem.y0, options["rtol"], options["atol"])
        terms: list[Tensor] = []

        def add(step: Any) -> None:
            h = abs(to_float(step.t1) - to_float(step.t))
            if self.kind == "error":
                stages, values = tableau.error_weights
                slopes = [step.k[j] for j in stages]
                # |h| twice: once it makes a slope an error, once it weighs the step.
                terms.append(norm.differentiable(step.y, step.y1, slopes, values) * h**2)
            else:
                size = partial(rk_error, rtol=0.0, atol=1.0)
                terms.append(embedded.stiffness(tableau, step.k, h, size) * h)

        solution = solve(func, y0, ts, **options, on_step=add)
        return solution, self.weight(self.step) * torch.stack(terms).sum()

    def __repr__(self) -> str:
        return f"Global(kind={self.kind!r}, weight={self.weight!r})"
