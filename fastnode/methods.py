"""Which engine runs a method: the one place that knows every method by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastnode.engines.adams import AdamsSteps
from fastnode.engines.implicit import ImplicitSteps
from fastnode.engines.step import ExplicitSteps, StepFunction
from fastnode.norms import ErrorNorm
from fastnode.options import AdamsOptions, FixedOptions, ImplicitOptions, parse
from fastnode.problem import Problem
from fastnode.tableaus import IMPLICIT, METHODS

ADAMS = ("explicit_adams", "implicit_adams", "fixed_adams")
SCIPY = "scipy_solver"

#: Methods that choose their steps.
ADAPTIVE = {name: tableau for name, tableau in METHODS.items() if tableau.error is not None}
#: Methods that step along a grid.
FIXED = (*(name for name in METHODS if name not in ADAPTIVE), *ADAMS, *IMPLICIT)
NAMES = (*ADAPTIVE, *FIXED, SCIPY)


def fixed_method(
    name: str, options: Mapping[str, Any] | None, problem: Problem, rtol: Any, atol: Any
) -> tuple[FixedOptions, StepFunction]:
    """The options of one of ``FIXED`` and its steps, made for one solve."""
    if name in IMPLICIT:
        implicit = parse(ImplicitOptions, name, options)
        return implicit, ImplicitSteps(IMPLICIT[name], implicit.max_iters)
    if name not in ADAMS:
        return parse(FixedOptions, name, options), ExplicitSteps(METHODS[name])
    adams = parse(AdamsOptions, name, options)
    corrector = None
    if name != "explicit_adams":
        corrector = ErrorNorm(problem.layout, problem.y0, rtol, atol, _largest)
    return adams, AdamsSteps(adams.order(corrector is None), corrector, adams.max_iters)


def _largest(error: Any) -> float:
    parts = error if isinstance(error, tuple) else (error,)
    return max((part.abs().max().item() for part in parts if part.numel()), default=0.0)
