"""From a problem, a method and its options to the object that takes the steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastnode import engines
from fastnode.callbacks import ADAPTIVE_CALLBACKS, FIXED_CALLBACKS, find_callbacks
from fastnode.engines.step import Step, StepFunction
from fastnode.methods import ADAPTIVE, NAMES
from fastnode.norms import ErrorNorm
from fastnode.options import AdaptiveOptions, parse
from fastnode.problem import Callbacks, Problem, Time, VectorField, to_float
from fastnode.tableaus import METHODS


def find_method(method: Any) -> str:
    name = "dopri5" if method is None else method
    if not isinstance(name, str) or name not in NAMES:
        raise ValueError(f"method must be one of {', '.join(NAMES)}, got {method!r}")
    return name


def clock_dtype(device: torch.device) -> torch.dtype:
    """float64, but where the device has none."""
    return torch.float32 if device.type == "mps" else torch.float64


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
    return engines.make_stepper(
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
