"""The library's own face: a solve that tells what it did."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastnode.adjoints.discrete.revolve import Revolve
from fastnode.adjoints.select import find_adjoint
from fastnode.api.fixed_in_graph import solve_in_graph
from fastnode.api.solve_joint import JointSolve
from fastnode.api.solve_samples import solve_samples
from fastnode.control.controllers import Controller, find_controller
from fastnode.control.options import FixedOptions
from fastnode.control.request import SolveRequest
from fastnode.engines import select
from fastnode.engines.methods import ADAPTIVE, FIXED, SOLVED, fixed_options
from fastnode.events.watch import as_events
from fastnode.problem.batch import make_samples, sample_first_step, sample_tolerances
from fastnode.problem.ivp import State, make_problem
from fastnode.solution import Solution
from fastnode.torch_support.compile import traced_by

SAVE = ("times", "steps", "dense")


@traced_by(solve_in_graph)
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

    With ``per_sample=True`` the first dimension of y0 is a batch of independent problems, each
    stepped by itself: the result for one is that of solving it alone. Each may have its own times,
    direction of time included. func then gets t of shape [b] and y of shape [b, ...], the b
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
            or what ``fastnode.fuse`` or ``fastnode.compile_field`` returns, with ``save="times"``;
            "auto" takes the last of these that it can. "graph" runs the whole adaptive solve on a
            CUDA device without waiting for it, for a func that is pure: kernels on tensors, nothing
            else (docs/cuda_graph.md); "auto" takes it for compiled fields, without gradients.
        first_step: size of the first step; chosen at the cost of one evaluation if None; if per
            sample a number or [B].
        min_step, max_step: limits of the step size, those of the controller if None.
        max_num_steps: steps tried (by each sample) before the solve gives up.
        step_size, steps: size or number of the steps of methods without an error estimate; one step
            between neighbours of ts if both are None. Between the ends of steps these methods
            interpolate by the cubic with the values and derivatives of both ends.
        throw: whether a solve that cannot go on raises; otherwise its ``Solution.status`` says why
            and its values are NaN from there on.
        on_step: called with each accepted step as it is taken; its attributes are the times ``t``
            and ``t1``, the packed states ``y`` and ``y1`` at both, the stage derivatives ``k``
            and, in units of the tolerances, the local ``error``; not per sample.
        adjoint: how gradients are made. "backprop": through the operations of the solve, whose
            graph stays in memory. "checkpoint": the steps are recomputed from the state at the
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
    _check_choice("method", method, SOLVED)
    _check_choice("save", save, SAVE)
    _check_choice("engine", engine, select.NAMES)
    if not callable(func):
        raise TypeError(f"func must be callable, got {type(func).__name__}")
    if not isinstance(args, (tuple, list)):
        raise TypeError(f"args must be a tuple or a list, got {type(args).__name__}")
    control = _limited(find_controller(controller), min_step, max_step)
    if not isinstance(max_num_steps, int) or max_num_steps < 1:
        raise ValueError(f"max_num_steps must be an integer of at least 1, got {max_num_steps!r}")
    watched = as_events(events)
    if method in ADAPTIVE and not (step_size is None and steps is None):
        raise ValueError(f"step_size and steps need a method of fixed steps, got {method!r}")
    name, slots = find_adjoint(adjoint, method)
    _check_combination(name, method, per_sample, save, bool(watched), on_step)
    fixed = _fixed(method, step_size, steps) if method in FIXED else None
    request = SolveRequest(
        method,
        rtol,
        atol,
        engine,
        name,
        slots,
        None if adjoint_params is None else tuple(adjoint_params),
        control,
        None if per_sample else _positive("first_step", first_step),
        max_num_steps,
        fixed=fixed,
        steps=steps,
        all_together=True,
        save=save,
        events=watched,
        on_step=on_step,
        throw=throw,
        record=True,
    )
    select.check_named(request, per_sample)
    with torch.no_grad() if name == "none" else nullcontext():
        if per_sample:
            samples = make_samples(func, y0, ts, tuple(args))
            tolerances = sample_tolerances(rtol, atol, samples.y0)
            request = request.with_(
                rtol=tolerances.rtol,
                atol=tolerances.atol,
                first_step=sample_first_step(first_step, samples.y0),
            )
            return solve_samples(ts, samples, request)
        problem = make_problem(func, y0, ts, tuple(args), "ts")
        if save == "dense":
            # A copy: the caller may change y0 before ``Solution.evaluate``.
            problem = problem.with_(y0=problem.y0.clone())
        return JointSolve(problem, request).run()


def _fixed(method: str, step_size: float | None, steps: int | None) -> FixedOptions:
    """Steps of one size or number, with a cubic between their ends."""
    if steps is not None:
        if step_size is not None:
            raise ValueError("step_size and steps exclude each other, got both")
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps must be an integer of at least 1, got {steps!r}")
    options = {} if step_size is None else {"step_size": step_size}
    return fixed_options(method, {**options, "interp": "cubic"})


def _check_combination(
    adjoint: str, method: str, per_sample: bool, save: str, events: bool, on_step: Any
) -> None:
    """Raises ValueError for what cannot go together."""
    if per_sample:
        if events:
            raise ValueError("events must be None with per_sample=True")
        if on_step is not None:
            raise ValueError("on_step must be None with per_sample=True")
        if method in FIXED:
            raise ValueError(f"per_sample needs a method with an error estimate, got {method!r}")
    if adjoint not in ("reversible", "continuous"):
        return
    kept = save == "dense" or (save == "steps" and adjoint == "continuous")
    asked = {"per_sample": per_sample, "events": events, f"save={save!r}": kept}
    for what in (what for what, wanted in asked.items() if wanted):
        raise ValueError(f"adjoint {adjoint!r} has no {what}; use adjoint='checkpoint'")


def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _limited(controller: Controller, min_step: Any, max_step: Any) -> Controller:
    if min_step is None and max_step is None:
        return controller
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
