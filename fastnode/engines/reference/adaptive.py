"""The adaptive loop in pure PyTorch, differentiable, on any device: the reference engine."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastnode.control.controllers import FUTILE, SHORT, Controller, initial_step
from fastnode.control.norms import ErrorNorm
from fastnode.control.options import Stop
from fastnode.engines.reference.step import Step, take_step
from fastnode.errors import cannot_continue
from fastnode.problem.ivp import NO_CALLBACKS, Callbacks, Time, VectorField, reached, to_float
from fastnode.tableaus import Tableau


class AdaptiveStepper:
    """The steps of an embedded method from (t, y) on, one accepted step at a time.

    The sizes of the steps are constants to autograd, as in every discrete adjoint.

    Args:
        field, tableau, t, y: what is solved, by which method, from where.
        end: no step goes beyond it; infinite (with the sign of the direction) if nothing ends it.
        controller, norm: how errors are measured and what they do to the step.
        first_step: size of the first step tried, or None to choose one at the cost of one
            evaluation.
        max_num_steps: steps tried before ``attempts`` is set back to 0.
        stops: times strictly between t and end, in the order of the solve.
        callbacks: called for each step.
    """

    def __init__(
        self,
        field: VectorField,
        tableau: Tableau,
        t: Time,
        y: Tensor,
        *,
        end: Time,
        controller: Controller,
        norm: ErrorNorm,
        first_step: float | None = None,
        max_num_steps: int = 2**31 - 1,
        stops: Sequence[Stop] = (),
        callbacks: Callbacks = NO_CALLBACKS,
    ):
        self.field, self.tableau, self.controller, self.norm = field, tableau, controller, norm
        self.t, self.y, self.end = t, y, end
        self.max_num_steps = max_num_steps
        self.callbacks = callbacks
        self.attempts = 0
        self.rejected = 0
        self._stops = list(stops)
        self._history = (1.0, 1.0)
        self._ratio = 0.0
        self._stuck = self._blown = False
        self._longest, self._futile = 0.0, 0
        self._short = SHORT * torch.finfo(field.time_dtype).eps
        self._derivatives: Sequence[Tensor] = ()
        self.f = field(t, y)
        if first_step is None:
            with torch.no_grad():
                span = to_float(end) - to_float(t)
                first_step = initial_step(field, to_float(t), y, self.f, span, tableau.order, norm)
        self.h = controller.clip(first_step)

    def advance(self) -> Step:
        """Tries steps until one is accepted, and returns it.

        Raises:
            StepSizeUnderflow, MaxStepsExceeded, NonFiniteState: no step can be accepted.
        """
        while True:
            self._check_progress()
            self._derivatives = ()
            self.attempts += 1
            direction, end = self.field.direction, self._stops[0] if self._stops else None
            limit = self.end if end is None else end.time
            room = abs(to_float(limit) - to_float(self.t))
            # Not |t1 - t|: rounding of t can keep that constant while h shrinks.
            taken = min(self.h, room)
            self._longest = max(self._longest, taken)
            t1 = self._end_of_step(limit, self.h < room)
            h = t1 - self.t
            self.callbacks.step(self.t, self.y, h)
            trial = self._try(t1)
            weights = [to_float(h) * w for w in self.tableau.error_weights.values]
            self._derivatives = trial.k
            derivatives = [trial.k[j] for j in self.tableau.error_weights.stages]
            trial.error = self._ratio = ratio = self.norm(self.y, trial.y1, derivatives, weights)
            following = self.controller.next_step(taken, ratio, self._history, self.tableau.order)
            if self.controller.accepts(taken, ratio):
                self.callbacks.accept(self.t, self.y, h)
                self._history = (ratio, self._history[0])
                if taken > self._short * self._longest:
                    self._futile = 0
                elif self._blown:
                    self._futile += 1
                self._stuck = self._blown = False
                # A truncated step says little about the size of the next one.
                self.h = max(following, self.h) if taken < self.h else following
                self.t, self.y, self.f = t1, trial.y1, self._next_derivative(trial)
                if end is not None and reached(t1, end.time, direction):
                    self._stops.pop(0)
                    if end.jump:
                        self.f = self.field(t1, trial.y1, 1)
                return trial
            self.callbacks.reject(self.t, self.y, h)
            self.rejected += 1
            blown = not math.isfinite(ratio)
            self._blown |= blown
            self._stuck = following >= taken or (blown and self._futile >= FUTILE)
            self.h = following

    def _try(self, t1: Time) -> Step:
        return take_step(self.field, self.tableau, self.t, t1, self.y, self.f, perturb=True)

    def _next_derivative(self, accepted: Step) -> Tensor:
        """The derivative at which the next step begins."""
        return accepted.k[-1]

    def _end_of_step(self, limit: Time, inside: bool) -> Time:
        """t + h, at most ``limit``."""
        if inside:
            return self.t + self.h * self.field.direction
        if isinstance(self.t, Tensor):
            # The value is that of the limit; the gradient is that of t, as the step is a constant.
            return to_float(limit) + (self.t - self.t.detach())
        return to_float(limit)

    def _check_progress(self) -> None:
        """Raises if a step of size h cannot be tried."""
        start, h = to_float(self.t), self.h * self.field.direction
        if self.attempts >= self.max_num_steps or start + h == start or self._stuck:
            cannot_continue(
                start, h, self.attempts, self.max_num_steps, self._ratio, self._derivatives
            )


def integrate_adaptive(stepper: AdaptiveStepper, times: Sequence[Time]) -> Tensor:
    """The solution [T, ...] at ``times``, the stepper being at the first of them."""
    outputs = [stepper.y]
    step = None
    for target in times[1:]:
        stepper.attempts = 0
        while not reached(stepper.t, target, stepper.field.direction):
            step = stepper.advance()
        assert step is not None
        outputs.append(step.at(target))
    return torch.stack(outputs)
