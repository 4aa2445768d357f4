"""Explicit fixed steps in a graph that torch.compile or torch.export records.

No engine runs there: the steps are plain formulas, which a compiler fuses with the vector field,
and which need no fastnode once they are exported. Their number must be known without the values of
any tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastnode.control.options import FixedOptions, even_grid
from fastnode.control.request import SolveRequest
from fastnode.engines.methods import fixed_options
from fastnode.engines.reference.step import ExplicitSteps
from fastnode.problem.ivp import Problem, State, Time, VectorField, make_problem
from fastnode.solution import Solution, Steps
from fastnode.tableaus import METHODS, Tableau
from fastnode.torch_support.recompute import module_of

#: Arguments of ``solve`` with which a graph can hold it, and what has no effect on fixed steps.
_TAKEN = {
    "save": "times",
    "per_sample": False,
    "events": None,
    "on_step": None,
    "step_size": None,
    "adjoint_params": None,
}
_WITHOUT_EFFECT = ("rtol", "atol", "controller", "first_step", "min_step", "max_step", "throw")
_ADJOINTS = ("backprop", "checkpoint", "none")


def explicit(method: Any) -> bool:
    """Whether the method's steps depend on no value."""
    return isinstance(method, str) and method in METHODS and METHODS[method].error is None


def solve_in_graph(
    func: Callable[..., Any],
    y0: State,
    ts: Tensor,
    *,
    method: str = "tsit5",
    steps: int | None = None,
    args: Sequence[Any] = (),
    adjoint: Any = "backprop",
    engine: str = "auto",
    max_num_steps: int = 100_000,
    **others: Any,
) -> Solution | None:
    """What ``solve`` returns; None for what a graph cannot hold, or what ``solve`` must refuse.

    With adjoint "checkpoint" each step is recomputed in the backward pass, by
    torch.utils.checkpoint, unless func has buffers. Outputs inside of a step are looked up by their
    times, and cost one evaluation more, at the last time.
    """
    known = isinstance(adjoint, str) and adjoint in _ADJOINTS
    if not explicit(method) or not known or engine not in ("auto", "reference"):
        return None
    for name, value in others.items():
        if name not in _WITHOUT_EFFECT and not (name in _TAKEN and value == _TAKEN[name]):
            return None
    if not (steps is None or (type(steps) is int and steps >= 1)) or type(max_num_steps) is not int:
        return None
    if not isinstance(args, (tuple, list)) or not isinstance(ts, Tensor) or ts.dim() != 1:
        return None
    if adjoint == "none":
        with torch.no_grad():
            return _solution(func, y0, ts, method, steps, tuple(args), False, max_num_steps)
    recompute = adjoint == "checkpoint" and not _has_buffers(func)
    return _solution(func, y0, ts, method, steps, tuple(args), recompute, max_num_steps)


def _has_buffers(func: Callable[..., Any]) -> bool:
    """Whether an evaluation may change buffers: then a graph cannot hold its recomputation, which
    would need them as they were."""
    module = module_of(func)
    return module is not None and len(list(module.buffers())) > 0


def _solution(
    func: Callable[..., Any],
    y0: State,
    ts: Tensor,
    method: str,
    steps: int | None,
    args: tuple[Any, ...],
    recompute: bool,
    max_num_steps: int,
) -> Solution | None:
    problem = make_problem(func, y0, ts, args, "ts")
    request = SolveRequest(method, fixed=FixedOptions(), steps=steps)
    if ts.shape[0] == 1:
        grid = [problem.times[0]]
    else:
        grid = request.grid(problem)
    count, tableau = len(grid) - 1, METHODS[method]
    if count > max_num_steps:
        return None
    states, derivatives = take_steps(problem, tableau, grid, recompute)
    nfe = count * len(tableau.a)
    if steps is None:
        outputs = torch.stack(states)
    elif ts.shape[0] <= 2:
        outputs = torch.stack([states[0], states[-1]][: ts.shape[0]])
    else:
        derivatives.append(problem.field(grid[-1], states[-1]))
        outputs, nfe = _inside(problem, grid, states, derivatives), nfe + 1
    edges = torch.stack([torch.as_tensor(t, dtype=torch.float64) for t in grid]).detach()
    unknown = torch.full((count,), math.nan, dtype=torch.float64)
    return Solution(
        ts=problem.t,
        ys=problem.layout.unpack(outputs),
        status="finished",
        nfe=nfe,
        accepted=count,
        rejected=0,
        steps=Steps(edges, unknown, unknown.clone()),
        events=[],
    )


def take_steps(
    problem: Problem, tableau: Tableau, grid: Sequence[Time], recompute: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """The packed states at all times of the grid, and the derivatives where steps begin."""
    steps, layout = ExplicitSteps(tableau), problem.layout

    def step(t: Time, t1: Time, y: Tensor) -> tuple[Tensor, Tensor]:
        # A field of its own: what is recomputed may change nothing outside.
        field = VectorField(problem.func, layout, y, problem.direction, problem.args)
        made = steps(field, t, t1, y, False)
        return made.y1, made.k[0]

    states, derivatives = [problem.y0], []
    for t, t1 in pairwise(grid):
        if recompute and torch.is_grad_enabled():
            from torch.utils.checkpoint import checkpoint

            y, f = checkpoint(step, t, t1, states[-1], use_reentrant=False)  # pyright: ignore
        else:
            y, f = step(t, t1, states[-1])
        states.append(y)
        derivatives.append(f)
    return states, derivatives


def _inside(
    problem: Problem, grid: Sequence[Time], states: list[Tensor], derivatives: list[Tensor]
) -> Tensor:
    """The cubics with the values and derivatives at both ends of steps, at the problem's times."""
    y0 = problem.y0
    edges = torch.stack([torch.as_tensor(t, dtype=torch.float64) for t in grid])
    t = problem.t.double()
    sign = (edges[-1] - edges[0]).sign().detach()
    place = torch.searchsorted(edges.detach() * sign, t.detach() * sign)
    after = place.clamp(1, len(grid) - 1)
    h = edges[after] - edges[after - 1]
    x = (t - edges[after - 1]) / h
    after = after.to(y0.device)
    wide = torch.promote_types(y0.dtype, torch.float32)

    def column(weight: Tensor) -> Tensor:
        real = wide.to_real() if wide.is_complex else wide
        return weight.to(y0.device, real).reshape(-1, *[1] * y0.dim())

    y, k = torch.stack(states).to(wide), torch.stack(derivatives).to(wide)
    y1, square = y[after], x * (1 - x)
    found = y[after - 1] + (
        column(x * x * (3 - 2 * x)) * (y1 - y[after - 1])
        + column(h * square * (1 - x)) * k[after - 1]
        - column(h * square * x) * k[after]
    )
    return found.to(y0.dtype)


def end_in_graph(
    func: Callable[..., Any],
    y0: Tensor,
    times: list[float],
    method: str,
    options: Mapping[str, Any] | None,
) -> tuple[Tensor, int] | None:
    """The state at the last of times of a solve with ``odeint``'s options, and its evaluations;
    None for what a graph cannot hold."""
    if not explicit(method):
        return None
    fixed = fixed_options(method, options)
    if fixed.grid_constructor is not None or fixed.perturb:
        return None
    grid = times
    if fixed.step_size is not None:
        grid = even_grid(times[0], times[-1], fixed.step_size)
    problem = make_problem(func, y0, torch.tensor(times, dtype=torch.float64))
    tableau = METHODS[method]
    states, _ = take_steps(problem, tableau, grid)
    return states[-1], (len(grid) - 1) * len(tableau.a)
