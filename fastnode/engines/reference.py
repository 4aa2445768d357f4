"""The loop in pure PyTorch: the definition of right, on any device, differentiable by autograd.

Times are Python floats. Where the caller wants gradients for times they are 0-dim tensors instead;
then rk_stage runs on plain tensor arithmetic, which knows their gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fastnode.controllers import IController, initial_step
from fastnode.errors import MaxStepsExceeded, NonFiniteState, StepSizeUnderflow
from fastnode.norms import ErrorNorm
from fastnode.ops.rk_stage import rk_stage
from fastnode.problem import Time, VectorField, to_float
from fastnode.tableaus import Tableau, Weights


def combine(y: Tensor, k: Sequence[Tensor], h: Time, weights: Weights) -> Tensor:
    """y + h sum_j w_j k_j."""
    return rk_stage(y, [k[j] for j in weights.stages], [h * w for w in weights.values])


class Step(NamedTuple):
    """A step from (t, y) to (t1, y1) with its stages."""

    tableau: Tableau
    t: Time
    t1: Time
    y: Tensor
    y1: Tensor
    k: list[Tensor]

    def at(self, t: Time) -> Tensor:
        """Dense output of the method itself at a time inside the step."""
        if isinstance(t, float) and t == self.t1:
            return self.y1
        h = self.t1 - self.t
        x = (t - self.t) / h
        rows = self.tableau.dense_weights
        slopes = [self.k[i] for i, _ in rows]
        return rk_stage(self.y, slopes, [h * _polynomial(row, x) for _, row in rows])

    def linear_at(self, t: Time) -> Tensor:
        if to_float(t) == to_float(self.t1):
            return self.y1
        return self.y + (t - self.t) / (self.t1 - self.t) * (self.y1 - self.y)

    def cubic_at(self, t: Time, f1: Tensor) -> Tensor:
        """The cubic with the values and slopes of both ends."""
        h = self.t1 - self.t
        x = (t - self.t) / h
        rise, square = x * x * (3 - 2 * x), x * (1 - x)
        slopes = [self.y1 - self.y, self.k[0], f1]
        return rk_stage(self.y, slopes, [rise, h * square * (1 - x), -h * square * x])


def _polynomial(coefficients: Sequence[float], x: Time) -> Time:
    """sum_p coefficients_p x^(p + 1)."""
    total = coefficients[-1] * x
    for coefficient in reversed(coefficients[:-1]):
        total = (total + coefficient) * x
    return total


def take_step(
    field: VectorField,
    tableau: Tableau,
    t: Time,
    t1: Time,
    y: Tensor,
    f: Tensor,
    perturb: bool,
) -> Step:
    """One step of a method. ``f`` is the field at (t, y); ``perturb`` has stages at the end of the
    step evaluated just before it, on this side of a jump there."""
    h = t1 - t
    k = [f]
    stage = y
    for c, weights in zip(tableau.stage_times[1:], tableau.stage_weights[1:], strict=True):
        stage = combine(y, k, h, weights)
        k.append(field(t1, stage, -1 if perturb else 0) if c == 1 else field(t + c * h, stage))
    y1 = stage if tableau.fsal else combine(y, k, h, tableau.solution_weights)
    return Step(tableau, t, t1, y, y1, k)


def integrate_fixed(
    field: VectorField,
    tableau: Tableau,
    y: Tensor,
    times: Sequence[Time],
    grid: Sequence[Time],
    *,
    interp: str = "linear",
    perturb: bool = False,
) -> Tensor:
    """Steps along ``grid``; returns [T, ...] at ``times``, which lie within it."""
    outputs = [y]
    for t, t1 in pairwise(grid):
        f = field(t, y, 1 if perturb else 0)
        step = take_step(field, tableau, t, t1, y, f, perturb)
        f1 = None
        while len(outputs) < len(times) and _reached(t1, times[len(outputs)], field.direction):
            target = times[len(outputs)]
            if interp == "linear" or to_float(target) == to_float(t1):
                outputs.append(step.linear_at(target))
            else:
                f1 = field(t1, step.y1) if f1 is None else f1
                outputs.append(step.cubic_at(target, f1))
        y = step.y1
    return torch.stack(outputs)


def _reached(t: Time, target: Time, direction: float) -> bool:
    return (to_float(t) - to_float(target)) * direction >= 0


def _end_of_step(t: Time, h: float, end: Time, direction: float) -> Time:
    """t + h on the way to ``end``, and not beyond it."""
    if (to_float(end) - to_float(t)) * direction > h:
        return t + h * direction
    if isinstance(t, Tensor):
        # The value is that of end; the gradient is that of t, as the step is a constant.
        return to_float(end) + (t - t.detach())
    return to_float(end)


def _check_progress(t: Time, h: float, direction: float, ratio: float, stuck: bool) -> None:
    """Raises if a step of size h cannot be tried; ``ratio`` is what the step before it gave."""
    start = to_float(t)
    if start + h * direction != start and not stuck:
        return
    where = {"time": start, "step": h * direction}
    if not math.isfinite(ratio):
        raise NonFiniteState(
            f"the vector field is not finite near t = {start:.9g}, however small the step", **where
        )
    raise StepSizeUnderflow(
        f"underflow in dt: at t = {start:.9g} the tolerances ask for a step of {h:g}; the problem "
        "may be stiff or singular there, or the tolerances below the precision of the state",
        **where,
    )


def integrate_adaptive(
    field: VectorField,
    tableau: Tableau,
    y: Tensor,
    times: Sequence[Time],
    *,
    controller: IController,
    norm: ErrorNorm,
    first_step: float | None = None,
    max_num_steps: int = 2**31 - 1,
) -> Tensor:
    """Steps as the controller says, never beyond the last time; returns [T, ...] at ``times``.

    The sizes of the steps are constants to autograd, as in every discrete adjoint.
    """
    outputs = [y]
    if len(times) == 1:
        return torch.stack(outputs)
    t, end = times[0], times[-1]
    f = field(t, y)
    span = to_float(end) - to_float(t)
    if first_step is None:
        with torch.no_grad():
            h = initial_step(field, to_float(t), y, f, span, tableau.order, norm)
    else:
        h = first_step
    h = controller.clip(h)
    step, ratio, stuck = None, 0.0, False
    for target in times[1:]:
        attempts = 0
        while not _reached(t, target, field.direction):
            if attempts >= max_num_steps:
                raise MaxStepsExceeded(
                    f"max_num_steps exceeded: {attempts} steps tried since the last output time; "
                    f"at t = {to_float(t):g} the next step is {h:g}",
                    time=to_float(t),
                    step=h * field.direction,
                )
            attempts += 1
            _check_progress(t, h, field.direction, ratio, stuck)
            t1 = _end_of_step(t, h, end, field.direction)
            trial = take_step(field, tableau, t, t1, y, f, perturb=True)
            # Not |t1 - t|, which t's rounding can hold fast while h keeps shrinking.
            taken = min(h, abs(to_float(end) - to_float(t)))
            weights = [to_float(t1 - t) * w for w in tableau.error_weights.values]
            slopes = [trial.k[j] for j in tableau.error_weights.stages]
            ratio = norm(y, trial.y1, slopes, weights)
            h = controller.next_step(taken, ratio)
            accepted = controller.accepts(taken, ratio)
            stuck = not accepted and h >= taken
            if accepted:
                step, t, y, f = trial, t1, trial.y1, trial.k[-1]
        assert step is not None
        outputs.append(step.at(target))
    return torch.stack(outputs)
