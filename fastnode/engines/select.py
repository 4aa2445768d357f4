"""Which engine runs a solve: the only place that decides.

``reference`` is pure PyTorch and the definition of right; ``native`` is the same loop in C++, which
calls the Python field; ``fused`` is that loop with a multilayer perceptron inside; ``graph`` is
that loop as one CUDA graph. Each engine says by ``refusal`` why it cannot run a solve.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from fastnode import errors, extension
from fastnode.control.controllers import Controller
from fastnode.control.norms import ErrorNorm
from fastnode.control.request import SolveRequest
from fastnode.engines import failures
from fastnode.engines.fused import double_backward
from fastnode.engines.fused import joint as fused
from fastnode.engines.fused import per_sample as per_sample_fused
from fastnode.engines.fused.refusal import refusal as fused_refusal
from fastnode.engines.methods import fixed_steps
from fastnode.engines.native import joint as native
from fastnode.engines.native import per_sample as per_sample_native
from fastnode.engines.per_sample_trace import Trace, trace_without_steps
from fastnode.engines.reference import adaptive, fixed, per_sample
from fastnode.engines.reference.adams import AdamsSteps
from fastnode.engines.reference.scipy_solver import integrate_scipy
from fastnode.engines.reference.step import ExplicitSteps, StepFunction
from fastnode.problem.batch import SampleProblem
from fastnode.problem.callbacks import ADAPTIVE_CALLBACKS, FIXED_CALLBACKS, find_callbacks
from fastnode.problem.ivp import Callbacks, Problem, Time, clock_dtype, to_float
from fastnode.tableaus import METHODS
from fastnode.torch_support.grad_mode import recorded

T = TypeVar("T")

NAMES = ("auto", "reference", "native", "fused", "graph")

if extension.AVAILABLE:
    extension.native().set_python_calls(
        errors.not_finite_at_start,
        errors.cannot_continue,
        failures.raise_failure,
        double_backward.gradients,
    )


def refused(engine: str, why: str) -> ValueError:
    """The error of a caller who named an engine that cannot run the solve."""
    return ValueError(f"engine {engine!r} cannot run this solve: {why}")


def choose(problem: Problem, request: SolveRequest) -> str:
    """The engine of a whole joint solve: "fused", or "auto" for one that takes it step by step.

    Raises:
        ValueError: the engine that was named cannot run it.
    """
    named = request.engine
    if named == "auto" or named == "fused":
        why = fused_refusal(problem, request)
        if why is None:
            return "fused"
        if named == "fused":
            raise refused(named, why)
    return named


def stepping_engine(
    engine: str, y: Tensor, times: Sequence[Time], controller: Controller | None = None
) -> str:
    """ "native" or "reference" for a solve that is taken step by step; "native" where it can.

    Raises:
        ValueError: the engine that was named cannot run it.
    """
    if engine not in NAMES:
        raise ValueError(f"engine must be one of {', '.join(NAMES)}, got {engine!r}")
    if engine == "reference":
        return engine
    why = native.refusal(y, times) or _own_rules(engine, controller)
    if why is None:
        return "native"
    if engine == "native":
        raise refused(engine, why)
    return "reference"


def _own_rules(engine: str, controller: Controller | None) -> str | None:
    """Why C++ cannot decide on steps: methods of a controller that is more than its numbers do."""
    if controller is None or not controller.has_own_rules:
        return None
    return (
        "it takes a controller's numbers and calls none of its methods; "
        f"{type(controller).__name__} needs engine='reference'"
    )


def graph_engine() -> Any:
    """The module of engine "graph". Imported when it is asked for, as few ask: it takes a tenth of
    the time of importing fastnode."""
    from fastnode.engines.cuda_graph import engine

    return engine


def check_named(request: SolveRequest, per_sample: bool = False) -> None:
    """Raises ValueError for what a named engine cannot do, whatever the problem."""
    if request.engine not in NAMES:
        raise ValueError(f"engine must be one of {', '.join(NAMES)}, got {request.engine!r}")
    if request.engine == "graph":
        graph_engine().check(request, per_sample)


def preferring_graph(
    problem: Problem, request: SolveRequest, run: Callable[[SolveRequest], T]
) -> T:
    """``run(request)``, with engine "graph" where it was not named but can run a compiled field on
    a GPU, for which there is no other code. Not where gradients are wanted: a backward pass that
    cannot be captured would raise when it is too late for another engine."""
    if request.engine != "auto" or not _is_compiled_on_gpu(problem):
        return run(request)
    func, graph = problem.func, graph_engine()
    held = (problem.y0, problem.t), problem.args, tuple(func.parameters())
    own = not request.adaptive or request.controller.has_own_rules
    if own or not func.may_be_captured() or (request.adjoint != "none" and recorded(*held)):
        return run(request)
    named = request.with_(engine="graph")
    try:
        graph.check(named, per_sample=False)
        return run(named)
    except graph.CannotCapture:
        func.cannot_be_captured()
    except graph.CannotRun:
        pass
    return run(request)


def _is_compiled_on_gpu(problem: Problem) -> bool:
    return problem.y0.is_cuda and getattr(type(problem.func), "perceptron", problem) is None


def integrate(problem: Problem, request: SolveRequest) -> Tensor:
    """The packed states at the problem's times, [T, *problem.y0.shape]."""
    if choose(problem, request) == "fused":
        return fused.integrate(problem, request)
    return preferring_graph(problem, request, lambda request: step_through(problem, request))


def step_through(problem: Problem, request: SolveRequest) -> Tensor:
    """The same by an engine that calls func for each stage, as the continuous adjoint does too."""
    check_named(request)
    if request.fixed is not None:
        return integrate_fixed(
            problem, request, fixed_steps(problem, request), fixed_callbacks(problem, request)
        )
    if request.scipy is not None:
        find_callbacks(problem, request.method, (), problem.t.dtype)
        return scipy_states(
            problem, request, ErrorNorm(problem.layout, problem.y0, request.rtol, request.atol)
        )
    if len(problem.times) == 1:
        return problem.y0.clone().unsqueeze(0)
    callbacks = adaptive_callbacks(problem, request)
    return run(make_stepper(problem, request, callbacks=callbacks), problem.times)


def make_stepper(
    problem: Problem,
    request: SolveRequest,
    *,
    end: Time | None = None,
    norm: Any = None,
    callbacks: Callbacks | None = None,
    first_step: float | None = None,
) -> Any:
    """An AdaptiveStepper (see engines.reference.adaptive) at the first time of the problem; it
    takes no step beyond ``end``, by default the last time. ``norm`` and ``first_step`` take the
    place of the request's."""
    field, y = problem.field, problem.y0
    start, *_, last = problem.times
    end = last if end is None else end
    if norm is None:
        norm = ErrorNorm(problem.layout, y, request.rtol, request.atol, request.norm).for_steps()
    options: dict[str, Any] = {
        "end": end,
        "controller": request.controller,
        "norm": norm,
        "first_step": request.first_step if first_step is None else first_step,
        "max_num_steps": request.max_num_steps,
        "stops": request.stops(to_float(start), to_float(end), field.direction),
    }
    if callbacks is not None:
        options["callbacks"] = callbacks
    if request.engine == "graph":
        why = _own_rules("graph", request.controller)
        if why is not None:
            raise refused("graph", why)
        return graph_engine().make_stepper(
            field, request.tableau, start, y, outputs=problem.times, **options
        )
    engine = stepping_engine(request.engine, y, (start, end), request.controller)
    if engine == "native":
        return native.make_stepper(field, request.tableau, start, y, **options)
    return adaptive.AdaptiveStepper(field, request.tableau, start, y, **options)


def run(stepper: Any, times: Sequence[Time]) -> Tensor:
    """The solution [T, ...] at ``times``, of which the stepper stands at the first."""
    if isinstance(stepper, adaptive.AdaptiveStepper):
        return adaptive.integrate_adaptive(stepper, times)
    return stepper.integrate(times)


def integrate_fixed(
    problem: Problem, request: SolveRequest, step: StepFunction, callbacks: Callbacks
) -> Tensor:
    """The solution at the problem's times by fixed steps; the C++ loop knows explicit Runge-Kutta
    and Adams methods, the implicit ones are run by the reference."""
    assert request.fixed is not None
    times = problem.times
    grid = times if request.fixed.steps_between_times else request.grid(problem)
    kept: dict[str, Any] = {
        "interp": request.fixed.interp,
        "perturb": request.fixed.perturb,
        "callbacks": callbacks,
    }
    if isinstance(step, (ExplicitSteps, AdamsSteps)):
        engine = stepping_engine(request.engine, problem.y0, (*times, *grid))
        if engine == "native":
            if isinstance(step, AdamsSteps):
                return native.integrate_adams(problem.field, step, problem.y0, times, grid, **kept)
            return native.integrate_fixed(
                problem.field, step.tableau, problem.y0, times, grid, **kept
            )
    return fixed.integrate_fixed(problem.field, step, problem.y0, times, grid, **kept)


def scipy_states(problem: Problem, request: SolveRequest, norm: ErrorNorm) -> Tensor:
    """The solution at the problem's times by SciPy."""
    assert request.scipy is not None
    return integrate_scipy(
        problem.field,
        problem.y0,
        problem.times,
        norm,
        solver=request.scipy.solver,
        min_step=request.scipy.min_step,
        max_step=request.scipy.max_step,
    )


def adaptive_callbacks(problem: Problem, request: SolveRequest) -> Callbacks:
    """Those that ``odeint``'s users attach to func."""
    dtype = clock_dtype(problem.field.device)
    return find_callbacks(problem, request.method, ADAPTIVE_CALLBACKS, dtype)


def fixed_callbacks(problem: Problem, request: SolveRequest) -> Callbacks:
    return find_callbacks(problem, request.method, FIXED_CALLBACKS, problem.t.dtype)


def solve_per_sample(problem: SampleProblem, request: SolveRequest) -> Trace:
    """Solves with per-sample stepping.

    Raises:
        ValueError: the engine that was named cannot run it.
    """
    if problem.ts.shape[1] == 1:
        return trace_without_steps(problem, request)
    engine = choose_per_sample(problem, request)
    if engine == "fused":
        return per_sample_fused.solve(problem, request, keep=False)[0]
    f0 = problem.field(problem.ts[:, 0], problem.y0, problem.args)
    why = _own_rules(engine, request.controller) or per_sample_native.refusal(problem, f0, request)
    if engine != "reference" and why is None:
        trace = per_sample_native.run(problem, f0, request)
        if trace is not None:
            return trace
        why = per_sample_native.LIMITS
    if engine == "native":
        assert why is not None
        raise refused(engine, why)
    return per_sample.PerSampleSolve(problem, f0, request).run()


def choose_per_sample(
    problem: SampleProblem, request: SolveRequest, gradients: bool = False
) -> str:
    """The engine of a solve with per-sample stepping: "fused", or another that was named.

    ``gradients``: whether the engine is to make them itself.

    Raises:
        ValueError: the engine that was named cannot run it.
    """
    named = request.engine
    if named == "graph" or (named == "native" and request.controller.has_own_rules):
        why = _own_rules(named, request.controller)
        if why is not None:
            raise refused(named, why)
    if named == "auto" or named == "fused":
        why = per_sample_fused.refusal(problem, request, gradients)
        if why is None:
            return "fused"
        if named == "fused":
            if not gradients:
                raise refused(named, why)
            return "auto"
    return named


def traceable(method: Any, options: Mapping[str, Any] | None, event_fn: Any) -> bool:
    """Whether torch.compile can record a solve that no engine runs whole: steps that do not depend
    on any value. Explicit steps from one output time to the next do; a step size needs the values
    of t."""
    free = options is None or not set(options) - {"interp", "norm"}
    return event_fn is None and free and method in METHODS and METHODS[method].error is None
