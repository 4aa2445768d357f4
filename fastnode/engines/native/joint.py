"""The loop in C++ (csrc/driver), which calls the vector field and runs fused kernels in between."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastnode import extension
from fastnode.ops.dispatch import transformed
from fastnode.problem.ivp import NO_CALLBACKS, Callbacks, Time, VectorField, no_callback
from fastnode.tableaus import RK4, Tableau
from fastnode.tableaus.adams import adams_bashforth, adams_moulton

if TYPE_CHECKING:
    from fastnode.control.controllers import Controller
    from fastnode.control.norms import ErrorNorm
    from fastnode.control.options import Stop
    from fastnode.engines.reference.adams import AdamsSteps


def refusal(y: Tensor, times: Sequence[Time]) -> str | None:
    """Why the native engine cannot run a solve from ``y``; None if it can."""
    if not extension.AVAILABLE:
        return f"the extension is {extension.REASON}"
    if (
        type(y) in (Tensor, torch.nn.Parameter)
        and not any(isinstance(t, Tensor) for t in times)
        and not torch.compiler.is_compiling()
        and not transformed()
    ):
        return None
    return (
        "times that need gradients, torch.func transforms, forward-mode differentiation, "
        "torch.compile and subclasses of Tensor need engine='reference'"
    )


def make_stepper(
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
) -> Any:
    """A stepper with the arguments, attributes and steps of engines.adaptive.AdaptiveStepper."""
    numbers = control_numbers(controller)
    hooks = [_or_none(each) for each in (callbacks.step, callbacks.accept, callbacks.reject)]
    return extension.native().AdaptiveStepper(
        field, compiled(tableau), t, y, end, numbers, norm, first_step, max_num_steps, stops, *hooks
    )


def integrate_fixed(
    field: VectorField,
    tableau: Tableau,
    y: Tensor,
    times: Sequence[Time],
    grid: Sequence[Time],
    *,
    interp: str = "linear",
    perturb: bool = False,
    callbacks: Callbacks = NO_CALLBACKS,
) -> Tensor:
    """As engines.fixed.integrate_fixed, for explicit Runge-Kutta methods."""
    solution, evaluations = extension.native().integrate_fixed(
        field,
        compiled(tableau),
        y,
        times,
        grid,
        interp == "cubic",
        perturb,
        _or_none(callbacks.step),
    )
    field.evaluations += evaluations
    return solution


def integrate_adams(
    field: VectorField,
    steps: AdamsSteps,
    y: Tensor,
    times: Sequence[Time],
    grid: Sequence[Time],
    *,
    interp: str = "linear",
    perturb: bool = False,
    callbacks: Callbacks = NO_CALLBACKS,
) -> Tensor:
    """The same for Adams methods."""
    solution, evaluations = extension.native().integrate_adams(
        field,
        compiled_adams(steps.kept),
        y,
        times,
        grid,
        interp == "cubic",
        perturb,
        _or_none(callbacks.step),
        steps.corrector,
        steps.max_iters,
        steps.warn_unconverged,
    )
    field.evaluations += evaluations
    return solution


def control_numbers(c: Controller) -> tuple[float, ...]:
    return (c.safety, c.ifactor, c.dfactor, c.smallest, c.min_step, c.max_step, *c.exponents)


def _or_none(callback: Any) -> Any:
    return None if callback is no_callback else callback


@cache
def compiled_adams(kept: int) -> Any:
    """Adams methods that keep so many derivatives."""
    counts = range(1, kept + 1)
    return extension.native().AdamsMethod(
        [[float(w) for w in adams_bashforth(n)] for n in counts],
        [[float(w) for w in adams_moulton(n + 1)] for n in counts],
        compiled(RK4),
    )


@cache
def compiled(tableau: Tableau) -> Any:
    return extension.native().Tableau(
        tableau.order,
        tableau.fsal,
        tableau.stage_times,
        tableau.stage_weights,
        tableau.solution_weights,
        None if tableau.error is None else tableau.error_weights,
        [] if tableau.dense is None else tableau.dense_weights,
        tableau.further_stages,
    )
