"""The face that torchdiffeq's users know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from fastnode import engines
from fastnode.controllers import Controller
from fastnode.engines.scipy_solver import integrate_scipy
from fastnode.methods import ADAPTIVE, FIXED, NAMES, fixed_method
from fastnode.norms import ErrorNorm
from fastnode.options import AdaptiveOptions, ScipyOptions, parse
from fastnode.problem import State, as_times, make_problem


def odeint(
    func: Callable[[Tensor, Any], Any],
    y0: State,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
) -> Any:
    """Solves dy/dt = func(t, y) with y(t[0]) = y0; arguments and result are torchdiffeq's.

    Gradients flow to y0, to what func closes over and to t, through the operations of the solve.

    Args:
        func: takes a scalar tensor (in the real dtype of y0) and the state, returns dy/dt in the
            state's form.
        y0: state, a floating or complex tensor of any shape, or a tuple of such of one dtype.
        t: times [T], floating, strictly increasing or strictly decreasing.
        rtol, atol: relative and absolute tolerance of adaptive methods: a number, a tensor that
            broadcasts to the state, or for a tuple state one of these for each element.
        method: ``dopri5`` (default) or ``tsit5``, adaptive; ``euler``, ``midpoint`` or ``rk4`` (the
            3/8 rule), one step between neighbours of t unless an option says otherwise.
        options: for adaptive methods first_step, min_step, max_step, safety, ifactor, dfactor,
            max_num_steps (steps tried between two output times) and norm (takes the error over the
            tolerance in the state's form, returns a number; 1 is just acceptable); for the others
            step_size or grid_constructor (takes func, y0, t, returns the grid), interp ("linear" or
            "cubic", between the points of the grid) and perturb (evaluate just inside the step at
            both of its ends). Unknown ones are named in a warning.
        event_fn: must be None.

    Returns:
        The state at each time, [T, *y0.shape], a tuple of such for a tuple state. Adaptive methods
        step freely up to t[-1], never beyond it, and interpolate with their own dense output.

    Raises:
        ValueError, TypeError: an argument is wrong; named before any work is done, except for what
            func returns.
        StepSizeUnderflow, MaxStepsExceeded, NonFiniteState: the solve cannot go on.
    """
    if event_fn is not None:
        raise ValueError("event_fn must be None: this version does not locate events")
    name = _find_method(method)
    problem = make_problem(func, y0, t)
    times = problem.times
    if name in FIXED:
        fixed, step = fixed_method(name, options, problem, rtol, atol)
        grid = fixed.grid(func, y0, problem.t)
        solution = engines.integrate_fixed(
            "auto",
            problem.field,
            step,
            problem.y0,
            times,
            as_times(grid),
            interp=fixed.interp,
            perturb=fixed.perturb,
        )
    elif name in ADAPTIVE:
        adaptive = parse(AdaptiveOptions, name, options)
        if len(times) == 1:
            return problem.layout.unpack(problem.y0.clone().unsqueeze(0))
        stepper = engines.make_stepper(
            "auto",
            problem.field,
            ADAPTIVE[name],
            times[0],
            problem.y0,
            end=times[-1],
            controller=Controller(
                adaptive.safety,
                adaptive.ifactor,
                adaptive.dfactor,
                adaptive.min_step,
                adaptive.max_step,
            ),
            norm=ErrorNorm(problem.layout, problem.y0, rtol, atol, adaptive.norm),
            first_step=adaptive.first_step,
            max_num_steps=adaptive.max_num_steps,
        )
        solution = engines.integrate(stepper, times)
    else:
        scipy = parse(ScipyOptions, name, options)
        solution = integrate_scipy(
            problem.field,
            problem.y0,
            times,
            ErrorNorm(problem.layout, problem.y0, rtol, atol),
            solver=scipy.solver,
            min_step=scipy.min_step,
            max_step=scipy.max_step,
        )
    return problem.layout.unpack(solution)


def _find_method(method: str | None) -> str:
    name = "dopri5" if method is None else method
    if not isinstance(name, str) or name not in NAMES:
        raise ValueError(f"method must be one of {', '.join(NAMES)}, got {method!r}")
    return name
