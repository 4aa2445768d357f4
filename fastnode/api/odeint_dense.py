"""Solutions as functions of time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastnode.engines import select
from fastnode.engines.methods import ADAPTIVE, find_method, odeint_request
from fastnode.engines.reference.step import Step
from fastnode.errors import InvalidValue
from fastnode.problem.ivp import Layout, State, as_times, make_problem, reached, to_float
from fastnode.torch_support.compile import uncompiled


class DenseSolution:
    """The solution of an adaptive solve, as a function of time.

    Attributes:
        times: the solver's own times, from t0 to t1.
    """

    def __init__(self, layout: Layout, steps: Sequence[Step], direction: float):
        self._layout, self._steps, self._direction = layout, steps, direction
        self.times = [to_float(step.t) for step in steps] + [to_float(steps[-1].t1)]
        self._ends = [t * direction for t in self.times[1:]]

    @uncompiled
    def __call__(self, t: Tensor | float) -> State:
        """The state at a time, or at each of a tensor of times: [*t.shape, *y0.shape].

        Gradients flow to the times and to what the solve depends on.

        Raises:
            ValueError: a time is not between t0 and t1, or not a number.
        """
        times = torch.as_tensor(t, dtype=None if isinstance(t, Tensor) else torch.float64)
        if times.is_complex() or times.dtype == torch.bool:
            raise TypeError(f"t must be real, got {times.dtype}")
        flat = [self._at(time, times.dtype) for time in as_times(times.reshape(-1).double())]
        if not flat:
            raise ValueError(f"t must hold at least one time, got shape {tuple(times.shape)}")
        packed = torch.stack(flat)
        return self._layout.unpack(packed.reshape(times.shape + packed.shape[1:]))

    def _at(self, t: Any, dtype: torch.dtype) -> Tensor:
        first, last = sorted((self.times[0], self.times[-1]))
        value = to_float(t)
        # An end of the interval is in it although t's dtype cannot tell it exactly.
        eps = torch.finfo(dtype).eps if dtype.is_floating_point else 0.0
        inside = min(max(value, first), last)
        if not abs(value - inside) <= eps * abs(inside):
            raise InvalidValue(f"t must be between {first:g} and {last:g}, got {value:g}")
        index = min(bisect_left(self._ends, inside * self._direction), len(self._steps) - 1)
        return self._steps[index].at(t if value == inside else t + (inside - value))


@uncompiled
def odeint_dense(
    func: Callable[..., Any],
    y0: State,
    t0: Tensor | float,
    t1: Tensor | float,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    args: tuple[Any, ...] = (),
) -> DenseSolution:
    """Solves from t0 to t1, forwards or backwards, and returns the solution as a function of time.

    It is the method's own dense output, and holds all stages of the solve in memory.

    Args:
        t0, t1: numbers or tensors with one element.
        func, y0, rtol, atol, options, args: as in odeint.
        method: an adaptive one, dopri5 by default.

    Returns:
        A function that takes a time, or a tensor of times of any shape, between t0 and t1.

    Raises:
        ValueError: the method is not adaptive, or as odeint does.
    """
    name = find_method(method)
    if name not in ADAPTIVE:
        raise InvalidValue(
            f"method must be one of {', '.join(ADAPTIVE)} for dense output, got {method!r}"
        )
    problem = make_problem(func, y0, torch.cat([_one("t0", t0), _one("t1", t1)]), args)
    # A copy: the caller may change y0 while the solution is used.
    problem = problem.with_(y0=problem.y0.clone())
    end = problem.times[-1]
    request = odeint_request(name, rtol, atol, options)
    callbacks = select.adaptive_callbacks(problem, request)
    stepper = select.make_stepper(problem, request, callbacks=callbacks)
    steps = []
    while not reached(stepper.t, end, problem.field.direction):
        step = stepper.advance()
        steps.append(
            Step(
                problem.field,
                ADAPTIVE[name],
                step.t,
                step.t1,
                step.y,
                step.y1,
                list(step.k),
                step.error,
            )
        )
    return DenseSolution(problem.layout, steps, problem.field.direction)


def _one(name: str, value: Any) -> Tensor:
    try:
        time = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a number, got {type(value).__name__}") from error
    if time.numel() != 1 or time.is_complex():
        raise ValueError(f"{name} must be one time, got {tuple(time.shape)} of {time.dtype}")
    return time.double().reshape(1).cpu()
