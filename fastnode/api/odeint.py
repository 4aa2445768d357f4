"""The face that torchdiffeq's users know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastnode.control.request import SolveRequest
from fastnode.engines import select
from fastnode.engines.fused import joint as fused
from fastnode.engines.fused.refusal import refusal
from fastnode.engines.methods import new_odeint_request, odeint_request
from fastnode.events.search import attach_event_gradients, solve_until_event
from fastnode.problem.ivp import State, make_problem
from fastnode.torch_support.compile import uncompiled


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
    args: tuple[Any, ...] = (),
    engine: str = "auto",
) -> Any:
    """Solves dy/dt = func(t, y, *args) with y(t[0]) = y0; arguments and result are torchdiffeq's.

    Gradients flow to y0, to what func closes over and to t, through the operations of the solve.

    Args:
        func: takes a scalar tensor (in the real dtype of y0) and the state, returns dy/dt in the
            state's form. Its attributes callback_step, callback_accept_step and
            callback_reject_step, where it has them, are called with (t0, y0, dt), the time and
            state at the start of a step and its length (positive): before each step is tried and
            once it is accepted or rejected. Methods of fixed steps call the first one only.
        y0: state, a floating or complex tensor of any shape, or a tuple of tensors, which are
            promoted to one dtype.
        t: times [T], floating, strictly increasing or strictly decreasing.
        rtol, atol: relative and absolute tolerance of adaptive methods: a number, a tensor that
            broadcasts to the state, or for a tuple state one of these for each element.
        method: the steps are chosen by ``dopri5`` (default), ``tsit5``, ``dopri8``, ``bosh3``,
            ``fehlberg2`` and ``adaptive_heun``, and by SciPy in ``scipy_solver``. They go from one
            entry of t to the next, unless an option says otherwise, in ``euler``, ``midpoint``,
            ``heun2``, ``heun3``, ``rk4`` (the 3/8 rule), the Adams methods ``explicit_adams`` and
            ``implicit_adams`` (also ``fixed_adams``) and the implicit ``implicit_euler``,
            ``implicit_midpoint``, ``trapezoid``, ``radauIIA3``, ``radauIIA5``, ``gl4``, ``gl6``,
            ``sdirk2`` and ``trbdf2``.
        options: for methods that choose their steps first_step, min_step, max_step, safety,
            ifactor, dfactor, max_num_steps (steps tried between two output times), step_t (times at
            which steps end), jump_t (the same, and func jumps there: it is evaluated again just
            after), norm (takes the error over the tolerance in the state's form, returns a number;
            1 is just acceptable) and dtype (without effect: times are float64). For the others
            step_size or grid_constructor (takes func, y0, t, returns the grid), interp ("linear" or
            "cubic", between the points of the grid) and perturb (evaluate just inside the step at
            both of its ends); max_iters for implicit methods, max_order and max_iters for Adams
            methods. For SciPy solver (its ``method``), min_step and max_step. Unknown ones are
            named in a warning.
        event_fn: ends the solve at the first sign change of an element of what it returns for a
            time (0-dim, float64; in the real dtype of y0 with fixed steps) and a state; see
            odeint_event. t then holds two times, the start and any later one for the direction.
        args: further arguments of func.
        engine: which loop runs it, as in ``solve``; with event_fn it must be "auto".

    Returns:
        The state at each time, [T, *y0.shape], a tuple of such for a tuple state. Adaptive methods
        step freely up to t[-1], never beyond it, and interpolate with their own dense output.
        With event_fn, (time of the event, states at the start and at the event).

    Raises:
        ValueError, TypeError: an argument is wrong; named before any work is done, except for what
            func returns.
        StepSizeUnderflow, MaxStepsExceeded, NonFiniteState, StagesNotSolved: the solve cannot go
            on.
    """
    if torch.compiler.is_compiling():
        asked = method, rtol, atol, options, engine
        return _traced(func, y0, t, asked, event_fn, args)
    request = odeint_request(method, rtol, atol, options, engine)
    return _solve(func, y0, t, request, event_fn, args)


def _solve(
    func: Callable[..., Any],
    y0: State,
    t: Tensor,
    request: SolveRequest,
    event_fn: Callable[..., Any] | None,
    args: tuple[Any, ...],
) -> Any:
    problem = make_problem(func, y0, t, args)
    if event_fn is not None:
        if request.engine != "auto":
            raise ValueError(f"engine must be 'auto' with event_fn, got {request.engine!r}")
        return solve_until_event(problem, request, event_fn)
    return problem.layout.unpack(select.integrate(problem, request))


@uncompiled
def _solve_uncompiled(
    func: Callable[..., Any],
    y0: State,
    t: Tensor,
    asked: tuple[Any, ...],
    event_fn: Callable[..., Any] | None,
    args: tuple[Any, ...],
) -> Any:
    return _solve(func, y0, t, odeint_request(*asked), event_fn, args)


def _traced(
    func: Callable[..., Any],
    y0: State,
    t: Tensor,
    asked: tuple[Any, ...],
    event_fn: Callable[..., Any] | None,
    args: tuple[Any, ...],
) -> Any:
    """In a graph of torch.compile: what it can record, and all else outside of it."""
    method, _, _, options, _ = asked
    # The compiler of torch 2.11 cannot ask the class of functions for an attribute.
    perceptron = isinstance(func, torch.nn.Module) and hasattr(type(func), "perceptron")
    if perceptron and not options and event_fn is None:
        request = new_odeint_request(*asked)
        problem = make_problem(func, y0, t, args)
        if refusal(problem, request) is None:
            return fused.integrate(problem, request)
    if select.traceable(method, options, event_fn):
        return _solve(func, y0, t, new_odeint_request(*asked), event_fn, args)
    return _solve_uncompiled(func, y0, t, asked, event_fn, args)


def odeint_event(
    func: Callable[..., Any],
    y0: State,
    t0: Tensor,
    *,
    event_fn: Callable[..., Any],
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """Solves from t0 until an element of event_fn(t, y) changes its sign.

    The event lies where the solution between the points of the solver (its dense output; with fixed
    steps, the interpolation that ``interp`` names) changes the sign, to the last digits of float64
    times; how near that is to the exact event is up to rtol and atol, or to the step size. Elements
    of event_fn are watched one by one, and of several sign changes the first one counts, but two
    within one step cancel out: set max_step below their distance. Signs are compared with those
    just after t0, so a solve that starts where an event ended another one, or with event_fn exactly
    zero, runs to the next event.

    The time and the state of the event carry gradients to all that shapes them (y0, t0, parameters
    of func and of event_fn), by the implicit function theorem.

    Args:
        func, y0: as in odeint.
        t0: time at the start, a floating tensor with one element.
        event_fn: takes a time (0-dim, float64; in the real dtype of y0 with fixed steps) and a
            state, returns a real tensor of any shape.
        reverse_time: solve towards earlier times.
        odeint_interface: what solves: odeint, odeint_adjoint or a function with their arguments.
        kwargs: passed to it. Methods of fixed steps need step_size among the options.

    Returns:
        Time of the event, 0-dim, in the dtype of t0, and the states at t0 and at the event, [2,
        *y0.shape], or a tuple of such.

    Raises:
        EventNotFound: there is no event in the first 20000 fixed steps, or as long as times are
            finite numbers.
        ValueError, TypeError, SolverError: as odeint does.
    """
    if not isinstance(t0, Tensor):
        raise TypeError(f"t0 must be a tensor, got {type(t0).__name__}")
    if t0.numel() != 1:
        raise ValueError(f"t0 must hold one time, got shape {tuple(t0.shape)}")
    start = t0.reshape(1)
    ahead = 1 + start.detach().abs()
    t = torch.cat([start, start.detach() + (-ahead if reverse_time else ahead)])
    event_t, solution = odeint_interface(func, y0, t, event_fn=event_fn, **kwargs)
    if odeint_interface is odeint:
        return event_t, solution
    problem = make_problem(func, y0, t, kwargs.get("args", ()))
    return attach_event_gradients(problem, event_fn, event_t, solution)
