"""Local regularisation: the error of one step at a random time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastnode.api.embedded_step import SampleStart, Start, find_tableau
from fastnode.engines.fused.first_step import first_step
from fastnode.engines.methods import FIXED
from fastnode.problem.ivp import State
from fastnode.regularize import random_time
from fastnode.regularize.base import METHOD, Regularizer, check_kind, needs_error_estimate
from fastnode.regularize.schedules import Schedule, as_schedule
from fastnode.solution import Solution

MODES = ("unbiased", "biased")


class Local(Regularizer):
    """The local error, or the stiffness, of one embedded step at a random time t_r of the solve.

    From the solution at t_r a fresh solve towards the end of the interval would begin with a step
    dt, which the tolerances of the solve choose. Of that one step

        penalty = weight E |dt|    or    weight S,

    with E and S as in ``fastnode.embedded_step``. The solution at t_r, the first stage derivative
    k_1 and dt are constants, so the gradient reaches func's parameters through the other stages and
    never through the solve: any adjoint and engine can be used, the cost is six evaluations with an
    autograd graph and two without (with tsit5), and the memory does not depend on the number of
    steps.

    Args:
        mode: "unbiased" draws t_r uniformly from the interval and adds it to the save points;
            "biased" draws one of the points at which the solver's accepted steps begin, which are
            dense where the field is hard to solve.
        kind: "error" or "stiffness".
        weight: a number or a ``Schedule``.
        per_sample: whether every sample (index of the first dimension) has its own dt, E and S, of
            which the penalty is the mean; func is then called with t of shape [B] too. In a solve
            with ``per_sample=True``, which needs it, each has its own t_r as well.
        method: of the one step.
        hold_k1: whether the first stage derivative is a constant, as in the paper. The weights of
        an error
            estimate sum to 0, so a change of func that is the same at all stages does not change
            the error; with a constant first stage derivative it seems to, and that makes most of
            the gradient. False takes the gradient of the error itself, at the cost of a seventh
            evaluation under autograd.
        generator: source of t_r.

    Raises:
        ValueError: an unknown mode or kind, a weight below 0, a method without the estimate; in
            ``solve``, "biased" with a method of fixed steps, which does not choose its steps, and
            "unbiased" with one whose steps lead from save point to save point.

    Source: A. Pal, A. Edelman, C. Rackauckas, Locally regularized neural differential equations,
    ICML 2023, arXiv 2303.02262.
    """

    def __init__(
        self,
        mode: str = "unbiased",
        kind: str = "error",
        weight: float | Schedule = 1.0,
        per_sample: bool = False,
        method: str = METHOD,
        hold_k1: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(generator)
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        check_kind(kind, method)
        self.weight = as_schedule("weight", weight)
        self.mode, self.kind, self.per_sample, self.method = mode, kind, per_sample, method
        self.hold_k1 = hold_k1

    def check(self, method: str) -> None:
        super().check(method)
        if self.mode == "biased":
            needs_error_estimate(method, "mode='biased'")

    def _solve(
        self, func: Callable[..., Any], y0: State, ts: Tensor, options: dict[str, Any]
    ) -> tuple[Solution, Tensor]:
        if options.get("per_sample") and not self.per_sample:
            raise ValueError("a solve with per_sample=True needs Local(per_sample=True)")
        by_save_points = options.get("step_size") is None and options.get("steps") is None
        if options["method"] in FIXED and by_save_points:
            raise ValueError(
                "mode='unbiased' needs steps or step_size with a method of fixed steps, which "
                f"would otherwise change with the random time, got {options['method']!r}"
            )
        rows = bool(options.get("per_sample"))
        solution, t, y = random_time.DRAWS[self.mode, rows](func, y0, ts, options, self._uniform)
        end = ts.detach()[..., -1].double()
        return solution, self.weight(self.step) * self._step(func, t, end, y, options)

    def _step(
        self, func: Callable[..., Any], t: Any, end: Tensor, y: State, options: dict[str, Any]
    ) -> Tensor:
        args, rtol, atol = tuple(options.get("args", ())), options["rtol"], options["atol"]
        tableau = find_tableau(self.method)
        may_fuse = options.get("engine", "auto") in ("auto", "fused")
        if may_fuse and self.kind == "error" and not self.per_sample and not args:
            found = first_step(func, t, end.item(), y, tableau, rtol, atol, self.hold_k1)
            if found is not None:
                error, h = found
                return error * abs(h)
        kind = SampleStart if self.per_sample else Start
        start = kind(func, t, end, y, args, tableau, rtol, atol)
        f = start.derivative(constant=self.hold_k1)
        h = start.first_step(f.detach())
        taken = start.take(f, h)
        if self.kind == "stiffness":
            return start.stiffness(taken).mean()
        return (start.norm(taken) * abs(h)).mean()

    def __repr__(self) -> str:
        return (
            f"Local(mode={self.mode!r}, kind={self.kind!r}, weight={self.weight!r}, "
            f"per_sample={self.per_sample}, method={self.method!r}, hold_k1={self.hold_k1})"
        )
