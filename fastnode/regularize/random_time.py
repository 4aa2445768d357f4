"""A solve, a random time in it, and the state at that time."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastnode.api.solve import solve
from fastnode.problem.ivp import Layout, State, check_times
from fastnode.regularize.base import first_tensor
from fastnode.solution import Solution

#: Uniform numbers in [0, 1) of a shape, float64, on the CPU.
Uniform = Callable[..., Tensor]
#: Draws until an error: a number is an end of the interval or a save point once in 2^24 draws.
TRIES = 100


def unbiased(
    func: Callable[..., Any], y0: State, ts: Tensor, options: dict[str, Any], uniform: Uniform
) -> tuple[Solution, float, State]:
    """A time drawn uniformly from the interval, which the solve saves too."""
    direction = check_times("ts", ts)
    times, place = _with_rows(ts[None], torch.tensor([direction]), uniform)
    solution = solve(func, y0, times[0], **options)
    row = int(place)
    y = _each(solution.ys, lambda x: x[row].detach())
    ys = _each(solution.ys, lambda x: torch.cat([x[:row], x[row + 1 :]]))
    return replace(solution, ts=ts, ys=ys), times[0, row].item(), y


def biased(
    func: Callable[..., Any], y0: State, ts: Tensor, options: dict[str, Any], uniform: Uniform
) -> tuple[Solution, float, State]:
    """One of the times at which accepted steps begin, all with the same probability."""
    reservoir = _Reservoir(uniform().item())
    solution = solve(func, y0, ts, **options, on_step=reservoir)
    layout = Layout(tuple(x.shape for x in y0) if isinstance(y0, tuple) else None)
    return solution, reservoir.t, layout.unpack(reservoir.y)


class _Reservoir:
    """Keeps one of the steps that it is called with: one state for any number of steps.

    Source: J. S. Vitter, Random sampling with a reservoir, ACM Trans. Math. Softw. 11 (1985),
    algorithm R.
    """

    def __init__(self, seed: float):
        self.random, self.count = random.Random(seed), 0
        self.t: float
        self.y: Tensor

    def __call__(self, step: Any) -> None:
        if self._takes():
            self.t, self.y = float(step.t), step.y.detach()

    def _takes(self) -> bool:
        self.count += 1
        return self.random.random() * self.count < 1

    def take_states(self, times: list[float], states: Tensor) -> None:
        """All steps at once; keeps the same one as a call for each step."""
        taken = max(n for n in range(len(times)) if self._takes())
        self.t, self.y = times[taken], states[taken].clone()


def unbiased_per_sample(
    func: Callable[..., Any], y0: State, ts: Tensor, options: dict[str, Any], uniform: Uniform
) -> tuple[Solution, Tensor, State]:
    """``unbiased`` with a time for each sample."""
    count = first_tensor(y0).shape[0]
    rows = ts.expand(count, -1) if ts.dim() == 1 else ts
    times, place = _with_rows(rows, torch.sign(rows[:, -1] - rows[:, 0]).detach(), uniform)
    solution = solve(func, y0, times, **options)
    samples = torch.arange(count, device=ts.device)
    others = torch.arange(rows.shape[1], device=ts.device)[:, None]
    others = others + (others >= place)

    def pick(x: Tensor, row: Tensor) -> Tensor:
        return x[row.to(x.device), samples.to(x.device)]

    y = _each(solution.ys, lambda x: pick(x, place).detach())
    ys = _each(solution.ys, lambda x: pick(x, others))
    return replace(solution, ts=ts, ys=ys), times.detach()[samples, place], y


def biased_per_sample(
    func: Callable[..., Any], y0: State, ts: Tensor, options: dict[str, Any], uniform: Uniform
) -> tuple[Solution, Tensor, State]:
    """``biased`` with a time for each sample."""
    keeps = options.get("save", "times") != "times"
    solution = solve(func, y0, ts, **(options if keeps else {**options, "save": "steps"}))
    steps = solution.steps
    assert isinstance(steps, list)
    shares = uniform(len(steps)).tolist()
    pairs = [(each, int(x * len(each))) for x, each in zip(shares, steps, strict=True)]
    t = torch.stack([each.times[place] for each, place in pairs])
    rows = [_each(each.states, lambda x, place=place: x[place].detach()) for each, place in pairs]
    if isinstance(y0, tuple):
        y: State = tuple(torch.stack(parts) for parts in zip(*rows, strict=True))
    else:
        y = torch.stack(rows)
    if not keeps:
        solution = replace(solution, steps=[replace(each, states=None) for each in steps])
    return solution, t, y


def _with_rows(ts: Tensor, direction: Tensor, uniform: Uniform) -> tuple[Tensor, Tensor]:
    """Times [B, T] with one random time added to each row, in order, and its index [B]."""
    start, end = ts.detach()[:, :1], ts.detach()[:, -1:]
    sign = direction.to(ts)[:, None]
    for _ in range(TRIES):
        drawn = start + uniform(len(ts), 1).to(ts) * (end - start)
        if not bool((ts.detach() == drawn).any()):
            times = (torch.cat([ts, drawn], dim=1) * sign).sort(dim=1).values * sign
            return times, (times.detach() == drawn).int().argmax(dim=1)
    raise ValueError(f"ts must leave room for a random time, got {ts.tolist()}")


def _each(state: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A function of each tensor of a state."""
    return tuple(map(function, state)) if isinstance(state, tuple) else function(state)


DRAWS: dict[tuple[str, bool], Callable[..., tuple[Solution, Any, State]]] = {
    ("unbiased", False): unbiased,
    ("biased", False): biased,
    ("unbiased", True): unbiased_per_sample,
    ("biased", True): biased_per_sample,
}
