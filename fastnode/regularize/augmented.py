"""Integrals along a solution, as extra states that do not affect the steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from fastnode.api.solve import solve
from fastnode.problem.ivp import State, check_times
from fastnode.regularize.base import first_tensor
from fastnode.solution import Solution, Steps

#: Takes func, t, y and func's further arguments; returns dy/dt and the integrands, scalars.
Integrands = Callable[..., tuple[Any, Sequence[Tensor]]]


def solve_with_integrals(
    func: Callable[..., Any],
    integrands: Integrands,
    count: int,
    y0: State,
    ts: Tensor,
    options: dict[str, Any],
) -> tuple[Solution, list[Tensor]]:
    """The solution, and the integral of each of ``count`` integrands over the interval by |dt|,
    whose sign does not depend on the direction of time.

    The integrals are states whose errors are divided by an infinite tolerance, so the steps are
    those of the solve without them.
    """
    if options.get("per_sample"):
        raise ValueError("this regulariser needs per_sample=False, got True")
    parts = y0 if isinstance(y0, tuple) else (y0,)
    lone = not isinstance(y0, tuple)
    rtol = _tolerances("rtol", options["rtol"], y0, 0.0, count)
    atol = _tolerances("atol", options["atol"], y0, math.inf, count)
    first = first_tensor(y0)
    zeros = tuple(first.new_zeros(()) for _ in range(count))

    def unpack(state: Any) -> Any:
        return state[0] if lone else tuple(state[: len(parts)])

    field = partial(_evaluate, func, integrands, unpack, lone)
    if isinstance(func, nn.Module):
        # Adjoints that recompute steps look for parameters and buffers in a module.
        field = _Field(func, field)
    solution = solve(field, (*parts, *zeros), ts, **{**options, "rtol": rtol, "atol": atol})
    direction = check_times("ts", ts)
    integrals = [direction * x[-1] for x in solution.ys[len(parts) :]]
    steps = solution.steps
    assert isinstance(steps, Steps)
    if steps.states is not None:
        steps = replace(steps, states=unpack(steps.states))
    dense = solution.dense
    plain = replace(
        solution,
        ys=unpack(solution.ys),
        steps=steps,
        dense=None if dense is None else lambda t: unpack(dense(t)),
    )
    return plain, integrals


def _evaluate(
    func: Callable[..., Any],
    integrands: Integrands,
    unpack: Callable[[Any], Any],
    lone: bool,
    t: Tensor,
    state: Any,
    *args: Any,
) -> Any:
    f, values = integrands(func, t, unpack(state), *args)
    if isinstance(f, Tensor) == lone:
        return (*((f,) if lone else f), *values)
    return f


class _Field(nn.Module):
    """A function of a module, as a module."""

    def __init__(self, module: nn.Module, function: Callable[..., Any]):
        super().__init__()
        self.module, self.function = module, function

    def forward(self, t: Tensor, state: Any, *args: Any) -> Any:
        return self.function(t, state, *args)


def _tolerances(name: str, value: Any, y0: State, extra: float, count: int) -> tuple[Any, ...]:
    """One for each tensor of the state and of the integrals."""
    each = isinstance(value, (tuple, list)) or (isinstance(value, Tensor) and value.dim() > 0)
    if isinstance(y0, tuple) and each:
        if len(value) != len(y0):
            raise ValueError(
                f"{name} must have one entry for each of the {len(y0)} tensors of y0, "
                f"got {len(value)}"
            )
        mine = tuple(value)
    else:
        mine = (value,) * (len(y0) if isinstance(y0, tuple) else 1)
    return (*mine, *(extra,) * count)
