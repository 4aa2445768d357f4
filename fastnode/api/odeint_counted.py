"""``odeint`` for modules that say how often their field was evaluated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from fastnode.api.odeint import odeint
from fastnode.control.request import SolveRequest
from fastnode.engines import select
from fastnode.engines.fused import joint as fused
from fastnode.engines.methods import odeint_request
from fastnode.problem.ivp import Problem, make_problem
from fastnode.tableaus import METHODS
from fastnode.torch_support.compile import traced_by


class _CountedField:
    """A vector field that counts its evaluations."""

    def __init__(self, field: Callable[..., Any]) -> None:
        self.field = field
        self.evaluations = 0

    def __call__(self, t: Tensor, z: Tensor) -> Tensor:
        self.evaluations += 1
        return self.field(t, z)


def _counted_in_graph(
    field: Callable[..., Any],
    y0: Tensor,
    t: Tensor,
    *,
    rtol: Any,
    atol: Any,
    method: str,
    options: Mapping[str, Any] | None = None,
) -> tuple[Tensor, int] | None:
    if not select.traceable(method, options, None):
        return None
    states = odeint(field, y0, t, rtol=rtol, atol=atol, method=method, options=options)
    return states, (t.shape[0] - 1) * len(METHODS[method].a)


@traced_by(_counted_in_graph)
def odeint_counted(
    field: Callable[..., Any],
    y0: Tensor,
    t: Tensor,
    *,
    rtol: Any,
    atol: Any,
    method: str,
    options: Mapping[str, Any] | None = None,
) -> tuple[Tensor, int]:
    """The states at t, and the evaluations of the field."""
    if hasattr(type(field), "perceptron"):
        # The fused engine must see the field itself, and counts by itself.
        found = _solve_fused(field, y0, t, (method, rtol, atol, options, "auto"))
        if found is not None:
            return found
    counted = _CountedField(field)
    states = odeint(counted, y0, t, rtol=rtol, atol=atol, method=method, options=options)
    return states, counted.evaluations


def _solve_fused(
    field: Callable[..., Any], y0: Tensor, t: Tensor, asked: tuple[Any, ...]
) -> tuple[Tensor, int] | None:
    """None where another engine is to run."""
    problem = make_problem(field, y0, t, ())
    request = odeint_request(*asked).with_(record=True)
    if select.choose(problem, request) != "fused":
        return select.preferring_graph(problem, request, partial(_solve_by_graph, problem))
    solution = fused.solve(problem, request)
    return solution.ys, int(solution.nfe)


def _solve_by_graph(problem: Problem, request: SolveRequest) -> tuple[Tensor, int] | None:
    """None if the request is for another engine."""
    if request.engine != "graph" or len(problem.times) == 1:
        return None
    callbacks = select.adaptive_callbacks(problem, request)
    stepper = select.make_stepper(problem, request, callbacks=callbacks)
    return select.run(stepper, problem.times), stepper.evaluations
