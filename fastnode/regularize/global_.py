"""Global regularisation: the errors, or the stiffness, of all steps of the solve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastnode.api.embedded_step import embedded_step, find_tableau, stiffness
from fastnode.api.solve import solve
from fastnode.control.norms import ErrorNorm
from fastnode.ops.rk_error import rk_error
from fastnode.problem.ivp import State, make_problem, to_float
from fastnode.regularize.base import (
    Regularizer,
    check_kind,
    first_tensor,
    needs_error_estimate,
)
from fastnode.regularize.schedules import Schedule, as_schedule
from fastnode.solution import Solution, Steps
from fastnode.tableaus import Tableau
from fastnode.torch_support.recompute import Surroundings

#: Adjoints that give the gradient of the steps that were taken.
DISCRETE = ("backprop", "checkpoint", "revolve")


class Global(Regularizer):
    """sum_j E_j |dt_j| or sum_j S_j |dt_j| over the accepted steps of the solve.

    E and S are those of ``fastnode.embedded_step``. The gradient goes through the whole solve, so
    it needs a discrete adjoint: "backprop", where it costs no evaluation; "checkpoint" or
    ``Revolve``, where each step is evaluated once more, and once more in the backward pass. The
    sizes of the steps are constants.

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
        if isinstance(adjoint, str) and adjoint not in DISCRETE:
            raise ValueError(
                "Global needs a discrete adjoint, as its gradient goes through every step of the "
                f"solve: {', '.join(DISCRETE)} or a Revolve, got {adjoint!r}; Local works with all"
            )
        if options.get("per_sample"):
            raise ValueError("Global needs per_sample=False, got True; Local works with both")
        terms = self._from_graph if adjoint == "backprop" else self._recomputed
        solution, found = terms(func, y0, ts, options)
        return solution, self.weight(self.step) * torch.stack(found).sum()

    def _from_graph(
        self, func: Callable[..., Any], y0: State, ts: Tensor, options: dict[str, Any]
    ) -> tuple[Solution, list[Tensor]]:
        """The terms of the sum, from the stages that autograd recorded in the solve."""
        problem = make_problem(func, y0, ts, tuple(options.get("args", ())))
        tableau = find_tableau(options["method"])
        if self.kind == "error":
            norm = ErrorNorm(problem.layout, problem.y0, options["rtol"], options["atol"])
            collector: _Errors | _Stiffness = _Errors(tableau, norm, problem.y0.dtype)
        else:
            collector = _Stiffness(tableau)
        return solve(func, y0, ts, **options, on_step=collector), collector.terms

    def _recomputed(
        self, func: Callable[..., Any], y0: State, ts: Tensor, options: dict[str, Any]
    ) -> tuple[Solution, list[Tensor]]:
        """The terms of the sum, each recomputed from the state at which its step begins."""
        method = options["method"]
        if not find_tableau(method).fsal:
            raise ValueError(
                "Global needs a method whose last stage derivative is the field at the end of the "
                "step with "
                f"this adjoint, got {method!r}; use adjoint='backprop'"
            )
        kept = options.get("save", "times") != "times"
        solution = solve(func, y0, ts, **(options if kept else {**options, "save": "steps"}))
        steps = solution.steps
        assert isinstance(steps, Steps) and steps.states is not None
        names = ("method", "rtol", "atol", "args")
        settings = {name: options[name] for name in names if name in options}

        surroundings = Surroundings(func, first_tensor(y0).device)

        def term(t: float, h: float, y: State) -> Tensor:
            # torch's checkpoint does not know what has taken the place of parameters since.
            with surroundings.recomputation(draws=False):
                step = embedded_step(func, t, y, h, **settings, constants=("h",))
            return abs(h) * (step.norm if self.kind == "error" else step.stiffness)

        terms = []
        for i, (t, h) in enumerate(zip(steps.times.tolist(), steps.h.tolist(), strict=False)):
            states = steps.states
            y = tuple(x[i] for x in states) if isinstance(states, tuple) else states[i]
            terms.append(checkpoint(term, t, h, y, use_reentrant=False))
        if not kept:
            solution = replace(solution, steps=replace(steps, states=None))
        return solution, terms

    def __repr__(self) -> str:
        return f"Global(kind={self.kind!r}, weight={self.weight!r})"


def _length(step: Any) -> float:
    return abs(to_float(step.t1) - to_float(step.t))


class _Errors:
    """E |dt| of each step."""

    def __init__(self, tableau: Tableau, norm: ErrorNorm, dtype: torch.dtype) -> None:
        self.terms: list[Tensor] = []
        self.dtype = torch.promote_types(dtype.to_real(), torch.float32)
        self.weights, self.norm = tableau.error_weights, norm

    def __call__(self, step: Any) -> None:
        h, (stages, values) = _length(step), self.weights
        derivatives = [step.k[j] for j in stages]
        # |h| twice: one factor makes the error of derivatives, the other weighs the step.
        self.terms.append(self.norm.differentiable(step.y, step.y1, derivatives, values) * h**2)

    def take_errors(self, steps: Steps) -> None:
        """All steps at once, from an engine whose recorded errors have gradients."""
        self.terms.extend((steps.error * steps.h.abs()).to(self.dtype).unbind())


class _Stiffness:
    """S |dt| of each step."""

    def __init__(self, tableau: Tableau) -> None:
        self.terms: list[Tensor] = []
        self.tableau, self.size = tableau, partial(rk_error, rtol=0.0, atol=1.0)

    def __call__(self, step: Any) -> None:
        h = _length(step)
        self.terms.append(stiffness(self.tableau, step.k, h, self.size) * h)
