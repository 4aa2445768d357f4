"""The loops of a solve, and which of them runs.

``reference`` is pure PyTorch and the definition of right; ``native`` is the same loop in C++;
``fused`` is that loop with a multilayer perceptron inside; without samples' own steps it is chosen
before a problem is made. ``graph`` is that loop as one CUDA graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastnode import extension
from fastnode.control.controllers import Controller
from fastnode.control.norms import ErrorNorm
from fastnode.control.options import AdaptiveOptions, parse
from fastnode.engines.fused import joint as fused
from fastnode.engines.fused import per_sample as per_sample_fused
from fastnode.engines.methods import ADAPTIVE
from fastnode.engines.native import joint as native
from fastnode.engines.native import per_sample as per_sample_native
from fastnode.engines.per_sample_trace import SampleOptions, Trace, trace_without_steps
from fastnode.engines.reference import adaptive, fixed, per_sample
from fastnode.engines.reference.step import ExplicitSteps, Step, StepFunction
from fastnode.problem.batch import SampleProblem
from fastnode.problem.callbacks import ADAPTIVE_CALLBACKS, FIXED_CALLBACKS, find_callbacks
from fastnode.problem.ivp import Callbacks, Problem, Time, VectorField, clock_dtype, to_float
from fastnode.tableaus import METHODS

NAMES = ("auto", "reference", "native", "fused", "graph")


def is_native(engine: str, y: Tensor, times: Sequence[Time]) -> bool:
    """Whether the C++ loop runs a solve from ``y``; ``auto`` takes it wherever it can.

    Raises:
        ValueError: ``engine`` is unknown, or is "native" where that cannot run.
    """
    if engine not in NAMES:
        raise ValueError(f"engine must be one of {', '.join(NAMES)}, got {engine!r}")
    able = engine != "reference" and native.available(y, times)
    if engine == "native" and not able:
        why = (
            "times that need gradients, torch.func transforms, forward-mode differentiation, "
            "torch.compile and subclasses of Tensor need engine='reference'"
        )
        raise ValueError(
            f"engine 'native' cannot run this solve: {why if extension.AVAILABLE else ''}"
            f"{'' if extension.AVAILABLE else 'the extension is ' + extension.REASON}"
        )
    return able


def by_own_rules(engine: str, controller: Controller) -> bool:
    """Whether Python decides on steps, by methods of a controller that is more than its numbers.

    Raises:
        ValueError: it does, and ``engine`` is "native" or "graph".
    """
    if controller.has_own_rules and engine in ("native", "graph"):
        raise ValueError(
            f"engine {engine!r} cannot run this solve: it takes a controller's numbers and calls "
            f"none of its methods; {type(controller).__name__} needs engine='reference'"
        )
    return controller.has_own_rules


def graph_engine() -> Any:
    """The module of engine "graph". Imported when it is asked for, as few ask: it takes a tenth of
    the time of importing fastnode."""
    from fastnode.engines.cuda_graph import engine as graph

    return graph


def make_stepper(
    engine: str,
    field: Any,
    tableau: Any,
    t: Time,
    y: Tensor,
    *,
    outputs: Sequence[Time] = (),
    **options: Any,
) -> Any:
    """An AdaptiveStepper of the chosen engine (see engines.adaptive for the arguments); ``outputs``
    are the times of outputs, which engine "graph" must know beforehand."""
    by_rules = by_own_rules(engine, options["controller"])
    if engine == "graph":
        return graph_engine().make_stepper(field, tableau, t, y, outputs=outputs, **options)
    if is_native(engine, y, (t, options["end"])) and not by_rules:
        return native.make_stepper(field, tableau, t, y, **options)
    return adaptive.AdaptiveStepper(field, tableau, t, y, **options)


def integrate_fixed(
    engine: str, field: Any, step: StepFunction, y: Tensor, times: Any, grid: Any, **options: Any
) -> Tensor:
    """engines.fixed.integrate_fixed by the chosen engine; the C++ loop knows explicit Runge-Kutta
    methods, the others are run by the reference."""
    if isinstance(step, ExplicitSteps) and is_native(engine, y, (*times, *grid)):
        return native.integrate_fixed(field, step.tableau, y, times, grid, **options)
    return fixed.integrate_fixed(field, step, y, times, grid, **options)


def integrate(stepper: Any, times: Sequence[Time]) -> Tensor:
    """The solution [T, ...] at ``times``, of which the stepper stands at the first."""
    if isinstance(stepper, adaptive.AdaptiveStepper):
        return adaptive.integrate_adaptive(stepper, times)
    return stepper.integrate(times)


def solve_per_sample(engine: str, problem: SampleProblem, options: SampleOptions) -> Trace:
    """Solves each sample with steps of its own.

    Raises:
        ValueError: ``engine`` is "native" or "fused" where that cannot run.
    """
    if problem.ts.shape[1] == 1:
        return trace_without_steps(problem, options)
    own_rules = by_own_rules(engine, options.controller)
    if engine in ("auto", "fused"):
        forced = engine == "fused"
        trace = None if own_rules else per_sample_fused.run(problem, options, forced)
        if trace is not None:
            return trace
        if forced:
            fused.refuse(per_sample_fused.LIMITS)
    f0 = problem.field(problem.ts[:, 0], problem.y0, problem.args)
    able = engine != "reference" and per_sample_native.available(problem, f0, options)
    if able and not own_rules:
        trace = per_sample_native.run(problem, f0, options)
        if trace is not None:
            return trace
    if engine == "native":
        raise ValueError(f"engine 'native' cannot run this solve: {per_sample_native.LIMITS}")
    return per_sample.PerSampleSolve(problem, f0, options).run()


def adaptive_stepper(
    problem: Problem,
    name: str,
    end: Time,
    options: Mapping[str, Any] | None,
    rtol: Any,
    atol: Any,
    engine: str = "auto",
) -> Any:
    """Stands at the first time of the problem, and takes no step beyond ``end``."""
    chosen = parse(AdaptiveOptions, name, options)
    return stepper_with(
        problem.field,
        name,
        problem.times[0],
        problem.y0,
        end,
        chosen,
        engine,
        outputs=problem.times,
        norm=ErrorNorm(problem.layout, problem.y0, rtol, atol, chosen.norm),
        callbacks=find_callbacks(
            problem, name, ADAPTIVE_CALLBACKS, clock_dtype(problem.field.device)
        ),
    )


def stepper_with(
    field: VectorField,
    name: str,
    start: Time,
    y: Tensor,
    end: Time,
    options: AdaptiveOptions,
    engine: str = "auto",
    **parts: Any,
) -> Any:
    """A stepper with options that are already checked; ``parts`` are further arguments of it."""
    return make_stepper(
        engine,
        field,
        ADAPTIVE[name],
        start,
        y,
        end=end,
        controller=options.controller,
        max_num_steps=options.max_num_steps,
        stops=options.stops(to_float(start), to_float(end), field.direction),
        **{"first_step": options.first_step, **parts},
    )


def fixed_callbacks(problem: Problem, name: str) -> Callbacks:
    return find_callbacks(problem, name, FIXED_CALLBACKS, problem.t.dtype)


def no_callbacks(problem: Problem, name: str) -> None:
    """Warns of callbacks, none of which the method supports."""
    find_callbacks(problem, name, (), problem.t.dtype)


def fixed_steps(
    problem: Problem, name: str, step: StepFunction, grid: Iterable[Time], perturb: bool
) -> Iterator[Step]:
    """The steps along ``grid``, which begins at the first time of the problem."""
    callbacks, y = fixed_callbacks(problem, name), problem.y0
    for t, t1 in pairwise(grid):
        callbacks.step(t, y, t1 - t)
        made = step(problem.field, t, t1, y, perturb)
        yield made
        y = made.y1


def traceable(method: Any, options: Mapping[str, Any] | None, event_fn: Any) -> bool:
    """Whether torch.compile can record a solve: steps that do not depend on any value.

    Explicit steps from one output time to the next do; a step size needs the values of t. Always
    true where nothing is recorded.
    """
    if not torch.compiler.is_compiling():
        return True
    free = options is None or not set(options) - {"interp", "norm"}
    return event_fn is None and free and method in METHODS and METHODS[method].error is None
