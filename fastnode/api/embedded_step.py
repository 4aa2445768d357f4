"""One step of an embedded method, with its local error and stiffness and their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastnode.control.controllers import Controller, initial_step
from fastnode.control.norms import ErrorNorm
from fastnode.control.request import SolveRequest
from fastnode.control.stiffness import Stiffness
from fastnode.engines.methods import ADAPTIVE
from fastnode.engines.reference.per_sample import PerSampleSolve
from fastnode.engines.reference.step import combine, take_step
from fastnode.ops.rk_error import rk_error
from fastnode.ops.rk_rows import rk_error_rows, rk_stage_rows
from fastnode.problem.batch import make_samples, sample_tolerances
from fastnode.problem.ivp import State, Time, make_problem, to_float
from fastnode.tableaus import Tableau

CONSTANTS = ("y", "k1", "h")


@dataclass(frozen=True, eq=False)
class EmbeddedStep:
    """One step of an embedded Runge-Kutta method.

    Args:
        y: the new state, in the form of the state before.
        error: its local error e = h sum_i (b_i - bhat_i) k_i, in the same form.
        norm: E, the error in units of the tolerances; a scalar, or [B] if per sample.
        stiffness: S, |lambda| over the length of the method's stability region: times |h| it is
            ``Steps.stiffness``. A scalar, or [B] if per sample; NaN for methods that have no two
            stages at the end of a step.
    """

    y: State
    error: State
    norm: Tensor
    stiffness: Tensor


def embedded_step(
    func: Callable[..., Any],
    t: float | Tensor,
    y: State,
    h: float | Tensor,
    *,
    method: str = "tsit5",
    rtol: Any = 1e-3,
    atol: Any = 1e-6,
    args: Sequence[Any] = (),
    per_sample: bool = False,
    constants: Collection[str] = CONSTANTS,
) -> EmbeddedStep:
    """One step of size h from (t, y), with its error and stiffness, differentiable.

        e = h sum_i (b_i - bhat_i) k_i,    E = rms(e / (atol + rtol max(|y|, |y_1|))),
        S = rms(k_i - k_j) / (rms(g_i - g_j) + eps) / stability,

    k_i and k_j being the last two derivatives at the end of the step, g_i and g_j the states at
    which they were evaluated, eps the spacing of floating-point numbers at 1. For a tuple state E
    is the largest of its parts' values, as in a solve. It costs one evaluation for each stage.

    By default y, the first stage derivative and h are constants, as in local regularisation:
    gradients reach what func closes over and args through the other stages, and nothing else.
    Source: A. Pal, A. Edelman, C. Rackauckas, Locally regularized neural differential equations,
    ICML 2023, arXiv 2303.02262.

    Args:
        func: as in ``solve``; with ``per_sample=True`` it is given t of shape [B].
        t: time, a number or a 0-dim tensor; if per sample also [B].
        y: state, a floating or complex tensor or a tuple of such; [B, ...] if per sample.
        h: size of the step, negative for a step back in time; like t.
        method: a method with an error estimate.
        rtol, atol: tolerances as in ``solve``; if per sample a number or [B].
        args: further arguments of func.
        per_sample: whether each index of the first dimension has its own t, h, E and S.
        constants: which of "y", "k1" (the derivative at (t, y)) and "h" are constants.

    Raises:
        ValueError, TypeError: an argument is wrong; named before any work is done.
    """
    tableau = find_tableau(method)
    if not isinstance(args, (tuple, list)):
        raise TypeError(f"args must be a tuple or a list, got {type(args).__name__}")
    held = set(constants)
    if not held <= set(CONSTANTS):
        raise ValueError(f"constants must be among {', '.join(CONSTANTS)}, got {constants!r}")
    if "y" in held:
        y = tuple(x.detach() for x in y) if isinstance(y, tuple) else y.detach()
    if "h" in held and isinstance(h, Tensor):
        h = h.detach()
    kind = SampleStart if per_sample else Start
    start = kind(func, t, _end(t, h), y, tuple(args), tableau, rtol, atol)
    taken = start.take(start.derivative(constant="k1" in held), h)
    return EmbeddedStep(
        start.unpack(taken.y1), start.error(taken), start.norm(taken), start.stiffness(taken)
    )


def find_tableau(method: str) -> Tableau:
    """The tableau of a method with an error estimate; ValueError for any other."""
    if method not in ADAPTIVE:
        raise ValueError(
            f"method must have an error estimate ({', '.join(ADAPTIVE)}), got {method!r}"
        )
    return ADAPTIVE[method]


def _end(t: Any, h: Any) -> Any:
    for name, value in (("t", t), ("h", h)):
        if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
            raise TypeError(f"{name} must be a number or a tensor, got {type(value).__name__}")
    start, size = _double(t).detach(), _double(h).detach()
    end = start + size
    if not bool((end.isfinite() & (end != start)).all()):
        raise ValueError(f"h must be finite and large enough to change t = {t}, got {h}")
    return end


@dataclass(frozen=True, eq=False)
class Taken:
    """A step as the engines have it, packed."""

    h: Any
    y1: Tensor
    k: list[Tensor]


class Start:
    """Where a joint solve begins: at (t, y), on its way to ``end``."""

    def __init__(
        self,
        func: Callable[..., Any],
        t: Any,
        end: Any,
        y: State,
        args: tuple[Any, ...],
        tableau: Tableau,
        rtol: Any,
        atol: Any,
    ):
        for name, value in (("t", t), ("h", end)):
            if isinstance(value, Tensor) and value.numel() != 1:
                raise ValueError(f"{name} must be one number, got shape {tuple(value.shape)}")
        first, last = (x.item() if isinstance(x, Tensor) else float(x) for x in (t, end))
        ends = torch.tensor([first, last], dtype=torch.float64)
        self.problem = make_problem(func, y, ends, args)
        self.tableau, self.field = tableau, self.problem.field
        self.t, self.span = _as_time(t), last - first
        self.measure = ErrorNorm(self.problem.layout, self.problem.y0, rtol, atol).for_steps()

    def derivative(self, constant: bool) -> Tensor:
        """The field at (t, y)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not constant):
            return self.field(self.t, self.problem.y0)

    @torch.no_grad()
    def first_step(self, f: Tensor) -> float:
        """The signed step with which a solve begins, at the cost of one evaluation."""
        t, order = to_float(self.t), self.tableau.order
        h = initial_step(self.field, t, self.problem.y0, f, self.span, order, self.measure)
        return math.copysign(min(h, abs(self.span)), self.span)

    def take(self, f: Tensor, h: Any) -> Taken:
        h = _as_time(h)
        y0 = self.problem.y0
        step = take_step(self.field, self.tableau, self.t, self.t + h, y0, f, perturb=True)
        return Taken(h, step.y1, step.k)

    def unpack(self, x: Tensor) -> State:
        return self.problem.layout.unpack(x)

    def error(self, taken: Taken) -> State:
        zero = torch.zeros_like(taken.y1)
        return self.unpack(combine(zero, taken.k, taken.h, self.tableau.error_weights))

    def norm(self, taken: Taken) -> Tensor:
        stages, values = self.tableau.error_weights
        derivatives = [taken.k[j] for j in stages]
        return abs(taken.h) * self.measure.differentiable(
            self.problem.y0, taken.y1, derivatives, values
        )

    def stiffness(self, taken: Taken) -> Tensor:
        return stiffness(self.tableau, taken.k, taken.h, partial(rk_error, rtol=0.0, atol=1.0))


class SampleStart:
    """Where each sample of a batch begins: at (t, y), on its way to ``end``, each [B]."""

    def __init__(
        self,
        func: Callable[..., Any],
        t: Any,
        end: Any,
        y: State,
        args: tuple[Any, ...],
        tableau: Tableau,
        rtol: Any,
        atol: Any,
    ):
        first = y[0] if isinstance(y, tuple) else y
        count = first.shape[0] if isinstance(first, Tensor) and first.dim() else 1
        ends = []
        for name, value in (("t", t), ("h", end)):
            tensor = _double(value)
            if tensor.dim() and tensor.shape != (count,):
                raise ValueError(
                    f"{name} must be a number or have shape [{count}], got {tuple(tensor.shape)}"
                )
            ends.append(tensor.expand(count))
        self.problem = make_samples(func, y, torch.stack(ends, dim=1), args)
        self.tableau = tableau
        self.tolerances = sample_tolerances(rtol, atol, self.problem.y0)

    def derivative(self, constant: bool) -> Tensor:
        """The field at (t, y), [B, D]."""
        problem = self.problem
        with torch.set_grad_enabled(torch.is_grad_enabled() and not constant):
            return problem.field(problem.ts[:, 0], problem.y0, problem.args)

    @torch.no_grad()
    def first_step(self, f: Tensor) -> Tensor:
        """The signed steps with which a solve begins, at the cost of one evaluation."""
        span = self.problem.ts.diff(dim=1)[:, 0]
        h = torch.minimum(self._solve(f).initial_steps().to(span), span.abs())
        return h.copysign(span)

    def take(self, f: Tensor, h: Any) -> Taken:
        solve, ts = self._solve(f), self.problem.ts
        size = _double(h).to(ts).expand(ts.shape[0])
        y1, k = solve.stages(solve.batch, solve.batch.t + size)
        return Taken(size, y1, k)

    def _solve(self, f: Tensor) -> PerSampleSolve:
        request = SolveRequest(
            self.tableau.name,
            self.tolerances.rtol,
            self.tolerances.atol,
            controller=Controller(),
        )
        return PerSampleSolve(self.problem, f, request)

    def unpack(self, x: Tensor) -> State:
        return self.problem.field.layout.unpack(x)

    def error(self, taken: Taken) -> State:
        stages, values = self.tableau.error_weights
        derivatives = [taken.k[j] for j in stages]
        h = taken.h.double()
        return self.unpack(rk_stage_rows(torch.zeros_like(taken.y1), derivatives, values, h))

    def norm(self, taken: Taken) -> Tensor:
        stages, values = self.tableau.error_weights
        derivatives = [taken.k[j] for j in stages]
        layout, h = self.problem.field.layout, taken.h.double()
        norm = self.tolerances.norm(layout, self.problem.y0, taken.y1, derivatives, values, h)
        return norm.to(torch.promote_types(taken.y1.dtype.to_real(), torch.float32))

    def stiffness(self, taken: Taken) -> Tensor:
        def size(y0: Tensor, y1: Tensor, k: Sequence[Tensor], c: Sequence[float]) -> Tensor:
            one = torch.ones_like(taken.h, dtype=torch.float64)
            return rk_error_rows(y0, y1, k, c, one, 0.0, 1.0)

        return stiffness(self.tableau, taken.k, taken.h, size)


def stiffness(tableau: Tableau, k: Sequence[Tensor], h: Any, size: Callable[..., Tensor]) -> Tensor:
    """S of a step; ``size(y0, y1, k, c)`` is the root mean square of sum_j c_j k_j."""
    known = Stiffness(tableau)
    if not known.known:
        return torch.full_like(size(k[0], k[0], k[:1], (1.0,)), math.nan)
    derivatives, states = (
        size(k[0], k[0], [k[j] for j in w.stages], w.values)
        for w in (known.derivatives, known.states)
    )
    eps = torch.finfo(derivatives.dtype).eps
    return (derivatives / (abs(h) * states + eps) / known.stability).to(derivatives.dtype)


def _double(x: float | Tensor) -> Tensor:
    """In float64 on the CPU: every device can be copied from, and not every one has float64."""
    return x.cpu().double() if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64)


def _as_time(t: Any) -> Time:
    """A float, or a 0-dim float64 tensor where it needs a gradient."""
    if isinstance(t, Tensor) and t.requires_grad and torch.is_grad_enabled():
        return t.double().cpu().reshape(())
    return t.item() if isinstance(t, Tensor) else float(t)
