"""The library's own face: a solve that tells what it did."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastnode import engines
from fastnode.adjoints import DISCRETE, Revolve, find_adjoint, find_params, recorded
from fastnode.adjoints.checkpoint import checkpointed
from fastnode.adjoints.continuous import Adjoint
from fastnode.adjoints.reversible import reversibly
from fastnode.adjoints.sample_checkpoint import checkpoint_samples
from fastnode.adjoints.stages import Scheme
from fastnode.compilation import outside_graph
from fastnode.controllers import Controller, find_controller
from fastnode.engines import fused
from fastnode.engines.grid import GridStepper
from fastnode.engines.rows import SampleOptions
from fastnode.engines.step import StepFunction, transformed
from fastnode.methods import ADAPTIVE, FIXED, fixed_method
from fastnode.norms import ErrorNorm
from fastnode.problem import (
    Problem,
    State,
    Time,
    as_times,
    check_times,
    make_problem,
    to_float,
)
from fastnode.recording import Recording
from fastnode.sample_solution import sample_solution
from fastnode.samples import make_samples, sample_first_step, sample_tolerances
from fastnode.solution import Solution
from fastnode.solve_events import as_events
from fastnode.tableaus import METHODS, Tableau

SAVE = ("times", "steps", "dense")
METHOD_NAMES = (*ADAPTIVE, *FIXED)
_REVERSIBLE = ("controller", "norm", "first_step")


@outside_graph
def solve(
    func: Callable[..., Any],
    y0: State,
    ts: Tensor,
    *,
    method: str = "tsit5",
    rtol: Any = 1e-3,
    atol: Any = 1e-6,
    controller: str | Controller = "I",
    per_sample: bool = False,
    save: str = "times",
    events: Any = None,
    args: Sequence[Any] = (),
    engine: str = "auto",
    first_step: float | Tensor | None = None,
    min_step: float | None = None,
    max_step: float | None = None,
    max_num_steps: int = 100_000,
    step_size: float | None = None,
    steps: int | None = None,
    throw: bool = True,
    on_step: Callable[[Any], Any] | None = None,
    adjoint: str | Revolve = "backprop",
    adjoint_params: Iterable[Tensor] | None = None,
) -> Solution:
    """Solves dy/dt = func(t, y, *args) from y0 at the first of ``ts``, and says how that went.

    The defaults are those that most users know: SciPy's tolerances, and the method and controller
    with which other libraries of differentiable solvers begin. Gradients flow to y0, to args, to
    what func closes over and to ts; ``adjoint`` says how.

    With ``per_sample=True`` the first dimension of y0 is a batch of independent problems, each with
    steps of its own: what comes out for one is what solving it alone gives. Each may have its own
    times, direction of time included. func then gets t of shape [b] and y of shape [b, ...], the b
    samples that still run, a number that shrinks as samples finish; tensors of args whose first
    dimension is B hold a row for each sample and shrink along. A tensor to be shared whose first
    dimension happens to be B is better closed over than passed.

    Args:
        func: takes t (a scalar, or [b]) in the real dtype of y0, the state and args; returns dy/dt
            in the state's form.
        y0: state, a floating or complex tensor of any shape, or a tuple of such of one dtype;
            [B, ...] if per sample.
        ts: times at which the solution is wanted, [T], strictly increasing or decreasing; if per
            sample also [B, T].
        method: any of ``odeint``'s but scipy_solver. Those without an error estimate take steps of
            one size and cannot solve per sample.
        rtol, atol: tolerances as in ``odeint``; if per sample a number or [B].
        controller: "I", "PI", "PID" or a ``Controller``.
        per_sample: whether each sample has its own steps.
        save: "times"; "steps" to keep the state at every accepted step; "dense" for that and
            ``Solution.evaluate``.
        events: an ``Event``, a function of t and the state (an event that ends the solve), or a
            sequence of these; not per sample. ``Solution.events`` says where they happened. As in
            ``odeint_event`` a function that changes its sign twice within a step is not seen.
        args: further arguments of func.
        engine: "auto", "reference" (pure PyTorch), "native" (C++), which knows no gradients where
            it solves per sample, or "fused" (one native call for the whole solve) for an MLPField
            or what ``fastnode.fuse`` returns, with ``save="times"``; "auto" takes the last that it
            can.
        first_step: size of the first step; chosen at the cost of one evaluation if None; if per
            sample a number or [B].
        min_step, max_step: limits of the step size, those of the controller if None.
        max_num_steps: steps tried (by each sample) before the solve gives up.
        step_size, steps: size or number of the steps of methods without an error estimate; one step
            between neighbours of ts if both are None. Between the ends of steps these methods
            interpolate by the cubic with the values and slopes of both ends.
        throw: whether a solve that cannot go on raises; otherwise its ``Solution.status`` says why
            and its values are NaN from there on.
        on_step: called with each accepted step as it is taken; its attributes are the times ``t``
            and ``t1``, the packed states ``y`` and ``y1`` at both, the slopes ``k`` of the stages
            and, in units of the tolerances, the local ``error``; not per sample.
        adjoint: how gradients are made. "backprop": through the operations of the solve, whose
            graph stays in memory. "checkpoint": the steps are taken again from the state at the
            beginning of each, ``Revolve(slots)``: from at most that many states; the same
            gradient, in the memory of one step and of the states. "reversible": by two states and
            steps that can be undone, a solution of its own (see adjoints/reversible.py) and its
            exact gradient. "continuous": by a second solve, as ``odeint_adjoint`` does. "none": no
            gradient. All but "backprop" call func again in the backward pass; random numbers,
            autocast and buffers are as in the forward pass.
        adjoint_params: the tensors that func holds and that need a gradient, for every adjoint but
            "backprop"; the parameters of func if it is None and func a module. They must be leaves;
            those that func does not use get zero.

    Raises:
        ValueError, TypeError: an argument is wrong; named before any work is done, except for what
            func returns.
        StepSizeUnderflow, MaxStepsExceeded, NonFiniteState: the solve cannot go on; the error names
            time and step, and the samples if per sample.
    """
    given = {k: v for k, v in locals().items() if k not in ("func", "y0", "ts")}
    _check_choice("method", method, METHOD_NAMES)
    _check_choice("save", save, SAVE)
    _check_choice("engine", engine, engines.NAMES)
    if not callable(func):
        raise TypeError(f"func must be callable, got {type(func).__name__}")
    if not isinstance(args, (tuple, list)):
        raise TypeError(f"args must be a tuple or a list, got {type(args).__name__}")
    control = _limited(find_controller(controller), min_step, max_step)
    if not isinstance(max_num_steps, int) or max_num_steps < 1:
        raise ValueError(f"max_num_steps must be an integer of at least 1, got {max_num_steps!r}")
    watched = as_events(events)
    if watched and per_sample:
        raise ValueError("events must be None with per_sample=True")
    if on_step is not None and per_sample:
        raise ValueError("on_step must be None with per_sample=True")
    if method in FIXED and per_sample:
        raise ValueError(f"per_sample needs a method with an error estimate, got {method!r}")
    if method in ADAPTIVE and not (step_size is None and steps is None):
        raise ValueError(f"step_size and steps need a method of fixed steps, got {method!r}")
    name, slots = find_adjoint(adjoint, method)
    if name == "none":
        with torch.no_grad():
            return solve(func, y0, ts, **{**given, "adjoint": "backprop"})
    if name in ("reversible", "continuous"):
        asked = {"per_sample": per_sample, "events": bool(watched), f"save={save!r}": True}
        asked[f"save={save!r}"] = save == "dense" or (save == "steps" and name == "continuous")
        for what in (what for what, wanted in asked.items() if wanted):
            raise ValueError(f"adjoint {name!r} has no {what}; use adjoint='checkpoint'")
    if per_sample:
        samples = make_samples(func, y0, ts, tuple(args))
        options = SampleOptions(
            ADAPTIVE[method],
            control,
            sample_tolerances(rtol, atol, samples.y0),
            sample_first_step(first_step, samples.y0),
            max_num_steps,
            keep_states=save != "times",
            keep_slopes=save == "dense",
            throw=throw,
        )
        params = find_params(func, name, adjoint_params) if name in DISCRETE else ()
        once = name in DISCRETE and recorded((samples.y0, ts), args, params) and not transformed()
        if once and samples.ts.shape[1] > 1:
            trace = checkpoint_samples(samples, options, engine, slots, params)
        else:
            trace = engines.solve_per_sample(engine, samples, options)
        return sample_solution(ts, samples, options, trace)
    if engine in ("auto", "fused"):
        solved = None
        whole = save == "times" and not watched and not args and on_step is None
        if whole and adjoint == "backprop" and method in ADAPTIVE:
            size = _positive("first_step", first_step)
            solved = fused.solve(
                func,
                y0,
                ts,
                ADAPTIVE[method],
                rtol,
                atol,
                control,
                size,
                max_num_steps,
                throw,
                engine == "fused",
            )
        if solved is not None:
            return solved
        if engine == "fused":
            fused.refuse()
    check_times("ts", ts)
    problem = make_problem(func, y0, ts, tuple(args))
    if method in FIXED:
        grid, step = _fixed_steps(method, problem, rtol, atol, step_size, steps)
        stepper = partial(_along_grid, step, max_num_steps)
    else:
        grid = []
        stepper = partial(
            _adaptive,
            engine,
            ADAPTIVE[method],
            controller=control,
            norm=ErrorNorm(problem.layout, problem.y0, rtol, atol),
            first_step=_positive("first_step", first_step),
            max_num_steps=max_num_steps,
        )
    record = partial(
        Recording,
        tableau=METHODS.get(method),
        save=save,
        events=watched,
        on_step=on_step,
    )
    if name in DISCRETE and len(ts) > 1:
        params = find_params(func, name, adjoint_params)
        if name == "reversible":
            options = {} if method in FIXED else {k: stepper.keywords[k] for k in _REVERSIBLE}
            tableau = METHODS[method]
            return reversibly(problem, tableau, params, record, grid, max_num_steps, options, throw)
        if recorded((problem.y0, ts), args, params) and not transformed():
            inside = "dense" if method in ADAPTIVE else "cubic"
            scheme = Scheme(METHODS[method], inside, perturb=method in ADAPTIVE)
            if save == "dense" and scheme.carries:
                raise ValueError(
                    f"save='dense' with adjoint {name!r} needs a method whose last stage is the "
                    f"field at the end of the step, got {method!r}; use adjoint='backprop'"
                )
            return checkpointed(problem, grid, scheme, slots, params, record, stepper, throw)
    if name == "continuous" and len(ts) > 1:
        params = find_params(func, name, adjoint_params)
        if recorded((problem.y0, ts), args, params) and not transformed():
            size = None if method in ADAPTIVE else _size(problem, step_size, steps)
            again = partial(_backprop, record, stepper, method, rtol, atol, step_size, steps)
            held = tuple(x for x in args if isinstance(x, Tensor) and x.requires_grad)
            adjoint_solve = Adjoint(
                problem,
                tuple({id(x): x for x in (*params, *held)}.values()),
                method=method,
                rtol=rtol,
                atol=atol,
                options=None if size is None else {"step_size": size},
                again=again,
            )
            with torch.no_grad():
                recording = record(replace(problem, t=problem.t.detach()))
                plain: list[Time] = [to_float(t) for t in grid]
                recording.run(partial(stepper, recording.problem, plain), throw)
                packed = torch.stack(recording.outputs)
            recording.outputs = list(adjoint_solve.attach(packed).unbind())
            recording.problem = problem
            return recording.solution()
    recording = record(problem)
    if len(ts) > 1:
        recording.run(partial(stepper, problem, grid), throw)
    return recording.solution()


def _backprop(
    record: Callable[[Problem], Recording],
    stepper: Callable[..., Any],
    method: str,
    rtol: Any,
    atol: Any,
    step_size: Any,
    steps: Any,
    problem: Problem,
) -> Tensor:
    """The packed states at the times, with the graph of all steps."""
    fixed = method in FIXED
    grid = _fixed_steps(method, problem, rtol, atol, step_size, steps)[0] if fixed else []
    recording = record(problem)
    recording.run(partial(stepper, problem, grid), True)
    return torch.stack(recording.outputs)


def _size(problem: Problem, step_size: Any, steps: Any) -> float | None:
    """The size of fixed steps, None for those from one time to the next."""
    if steps is None:
        return step_size
    start, *_, end = problem.t.tolist()
    return abs(end - start) / steps


def _adaptive(
    engine: str, tableau: Tableau, problem: Problem, grid: list[Time], **options: Any
) -> Any:
    start, *_, end = problem.times
    return engines.make_stepper(
        engine, problem.field, tableau, start, problem.y0, end=end, **options
    )


def _along_grid(
    step: StepFunction, max_num_steps: int, problem: Problem, grid: list[Time]
) -> GridStepper:
    return GridStepper(problem.field, step, problem.y0, grid, max_num_steps)


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _limited(controller: Controller, min_step: Any, max_step: Any) -> Controller:
    limits = {"min_step": min_step, "max_step": max_step}
    return replace(controller, **{n: v for n, v in limits.items() if v is not None})


def _positive(name: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a number, got {type(value).__name__}") from error
    if not 0 < number < float("inf"):
        raise ValueError(f"{name} must be positive, got {number}")
    return number


def _fixed_steps(
    method: str, problem: Problem, rtol: Any, atol: Any, step_size: Any, steps: Any
) -> tuple[list[Time], StepFunction]:
    """Where fixed steps begin and end, and the method that takes them."""
    options = None if step_size is None else {"step_size": step_size}
    fixed, step = fixed_method(method, options, problem, rtol, atol)
    if steps is None:
        return as_times(fixed.grid(problem.field.func, problem.y0, problem.t)), step
    if step_size is not None:
        raise ValueError("step_size and steps exclude each other, got both")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be an integer of at least 1, got {steps!r}")
    t = problem.t.double()
    even = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    # Both ends exactly: 1 - x and x, not a sum of rounded steps.
    return as_times(t[0] * (1 - even) + t[-1] * even), step
