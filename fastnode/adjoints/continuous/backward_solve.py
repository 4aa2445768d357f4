"""The solve of the continuous adjoint, interval by interval, by the engines of every other solve.

The state of explicit Runge-Kutta methods is (y, a), and their stages feed the parameter quadrature;
so do the stages of implicit methods once they are solved. Adams methods, which need the derivatives
of earlier steps, and SciPy integrate the parameter gradients as part of the state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from fastnode.adjoints.continuous.adjoint_field import AdjointField
from fastnode.adjoints.continuous.adjoint_norm import AdjointNorm
from fastnode.adjoints.continuous.quadrature import Quadrature
from fastnode.control.norms import ErrorNorm
from fastnode.control.request import SolveRequest
from fastnode.engines import select
from fastnode.engines.methods import ADAPTIVE, fixed_steps
from fastnode.engines.reference.implicit import ImplicitSteps
from fastnode.engines.reference.step import Step, StepFunction
from fastnode.problem.callbacks import ADAPTIVE_CALLBACKS, FIXED_CALLBACKS, find_callbacks
from fastnode.problem.ivp import (
    Callbacks,
    Layout,
    Problem,
    Time,
    VectorField,
    clock_dtype,
    no_callback,
)
from fastnode.tableaus import IMPLICIT, METHODS

Callback = Callable[[Time, Tensor, Time], None]


class Settings(Protocol):
    """The settings of an adjoint that its backward solve reads."""

    problem: Problem
    params: tuple[Tensor, ...]
    request: SolveRequest
    norm: AdjointNorm


class BackwardSolve:
    """One backward pass, solved interval by interval."""

    def __init__(self, settings: Settings):
        self.settings, self.problem, self.norm = settings, settings.problem, settings.norm
        self.request, self.name = settings.request, settings.request.method
        tableau = METHODS.get(self.name)
        inside = tableau is None and self.name not in IMPLICIT
        self.func = AdjointField(self.problem, settings.params, inside)
        self._h: float | None = None
        shapes = self.norm.layout.shapes or ()
        self._rows: list[Tensor] = []
        self.quadrature = Quadrature(settings.params)
        if inside:
            self._rows = self.func.as_state(())
        elif tableau is not None:
            self.quadrature.follow(tableau, self.norm.uses_params and self.name in ADAPTIVE)
            self.func.quadrature = self.quadrature
            self.norm.watch(self.quadrature)
        self.layout = Layout((*shapes, *(row.shape for row in self._rows)))

    def totals(self) -> list[Tensor]:
        """The gradients of the parameters so far."""
        return self.func.from_state(self._rows) if self.func.inside else self.quadrature.totals

    def interval(self, start: float, end: float, y: Tensor, a: Tensor) -> Tensor:
        """a at ``end``, from y and a at ``start``."""
        state = torch.cat([part.reshape(-1) for part in (y, a, *self._rows)])
        direction = -self.problem.field.direction
        field = VectorField(self.func, self.layout, state, direction)
        times = torch.tensor([start, end], dtype=self._time_dtype)
        problem = Problem(self.func, self.layout, state, times, direction, field=field)
        if self.request.adaptive:
            final = self._adaptive(problem)
        elif self.request.scipy is not None:
            final = self._by_scipy(problem)
        else:
            final = self._fixed(problem)
        n = self.problem.y0.numel()
        if self.func.inside:
            self._rows = self._gradients_in(final)
        return final[n : 2 * n].reshape(self.problem.y0.shape)

    def _parts(self, state: Tensor) -> tuple[Tensor, ...]:
        parts = self.layout.unpack(state)
        assert isinstance(parts, tuple)
        return parts

    def _gradients_in(self, state: Tensor) -> list[Tensor]:
        """Those of the parameters that a state holds besides y and a."""
        return list(self._parts(state)[len(self.norm.layout.shapes or ()) :])

    @property
    def _time_dtype(self) -> torch.dtype:
        return torch.float64 if self.name in ADAPTIVE else self.problem.t.dtype

    def _adaptive(self, problem: Problem) -> Tensor:
        self.quadrature.restart()
        callbacks = self._adjoint_callbacks(ADAPTIVE_CALLBACKS, clock_dtype(problem.field.device))
        stepper = select.make_stepper(
            problem,
            self.request,
            norm=self.norm,
            callbacks=Callbacks(
                _in_sequence(self._begin, callbacks.step),
                _in_sequence(callbacks.accept, self._accept),
                callbacks.reject,
            ),
            # The steps of the interval before say more than the first stage derivative of this one.
            first_step=self.request.first_step or self._h,
        )
        final = select.run(stepper, problem.times)[-1]
        self._h = stepper.h
        return final

    def _fixed(self, problem: Problem) -> Tensor:
        rtol, atol = self._tolerances
        step = fixed_steps(problem, self.request.with_(rtol=rtol, atol=atol))
        callbacks = self._adjoint_callbacks(FIXED_CALLBACKS, self.problem.t.dtype)
        if isinstance(step, ImplicitSteps):
            step = self._with_parameters(step)
        elif not self.func.inside:
            callbacks = Callbacks(_in_sequence(self._next, callbacks.step))
        final = select.integrate_fixed(problem, self.request, step, callbacks)[-1]
        self.quadrature.accept()
        return final

    def _with_parameters(self, steps: ImplicitSteps) -> StepFunction:
        def step(field: VectorField, t: Time, t1: Time, y: Tensor, perturb: bool) -> Step:
            made = steps(field, t, t1, y, perturb)
            h = made.t1 - made.t
            for weight, time, side, state in steps.stages(h, y):
                if weight:
                    at = field.time(time, side)
                    _, integrand = self.func.evaluate(at, self._parts(state), True)
                    self.quadrature.add(integrand, float(h) * weight)
            return made

        return step

    def _by_scipy(self, problem: Problem) -> Tensor:
        self._adjoint_callbacks((), self.problem.t.dtype)
        rtol, atol = self._tolerances
        norm = ErrorNorm(problem.layout, problem.y0, rtol, atol)
        return select.scipy_states(problem, self.request, norm)[-1]

    @property
    def _tolerances(self) -> list[list[Any]]:
        """rtol and atol for each part of the state."""
        count = len(self.layout.shapes or ())
        return [each[:count] for each in self.norm.tolerances]

    def _begin(self, t: Time, y: Tensor, h: Time) -> None:
        self.quadrature.begin(float(h))

    def _next(self, t: Time, y: Tensor, h: Time) -> None:
        # Fixed steps have no callback for acceptance: every step is accepted.
        self.quadrature.accept()
        self.quadrature.begin(float(h))

    def _accept(self, t: Time, y: Tensor, h: Time) -> None:
        self.quadrature.accept()

    def _adjoint_callbacks(self, supported: Sequence[str], dtype: torch.dtype) -> Callbacks:
        """The caller's callbacks, which see (gradient of time, y, a, *gradients of params)."""
        n, like = self.problem.y0.numel(), self.problem.y0

        def view(state: Tensor) -> tuple[Tensor, ...]:
            y, a = (state[i : i + n].reshape(like.shape) for i in (0, n))
            if self.func.inside:
                totals = self.func.from_state(self._gradients_in(state))
            else:
                totals = self.quadrature.totals
            return like.new_zeros(()), y, a, *totals

        return find_callbacks(self.problem, self.name, supported, dtype, "_adjoint", view)


def _in_sequence(first: Callback, second: Callback) -> Callback:
    """A callback that calls both; one of them alone where the other does nothing."""
    if first is no_callback or second is no_callback:
        return second if first is no_callback else first

    def call(t: Time, y: Tensor, h: Time) -> None:
        first(t, y, h)
        second(t, y, h)

    return call
