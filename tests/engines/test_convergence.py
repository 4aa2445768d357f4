"""Measured order of every method, forward and backward in time."""

from __future__ import annotations

import math

import pytest
import torch

import fastnode
from fastnode.engines.methods import ADAPTIVE, FIXED

#: Order of the solution and, at h = 0.4, 0.2, ..., of one step and of what lies inside it.
FIXED_ORDER = {
    "euler": 1,
    "midpoint": 2,
    "heun2": 2,
    "heun3": 3,
    "rk4": 4,
    "explicit_adams": 4,
    "implicit_adams": 5,
    "fixed_adams": 5,
    "implicit_euler": 1,
    "implicit_midpoint": 2,
    "trapezoid": 2,
    "radauIIA3": 3,
    "radauIIA5": 5,
    "gl4": 4,
    "gl6": 6,
    "sdirk2": 2,
    "trbdf2": 2,
}
ADAPTIVE_ORDER = {
    "dopri5": 5,
    "tsit5": 5,
    "dopri8": 8,
    "bosh3": 3,
    "fehlberg2": 2,
    "adaptive_heun": 2,
}
DENSE_ORDER = ADAPTIVE_ORDER | {"dopri5": 4, "tsit5": 4, "dopri8": 7}
#: Without these the Adams methods stop iterating, and grow, at their own pace.
OPTIONS = {name: {"max_order": 5, "max_iters": 60} for name in ("implicit_adams", "fixed_adams")}
BOTH_WAYS = pytest.mark.parametrize("backward", [False, True])


def field(t, y):
    """A nonlinear equation, and a turn by the angle a(t) = t + sin(t) / 2."""
    turn = 1 + torch.cos(t) / 2
    return torch.stack([y[0] ** 2 * torch.cos(t), -y[2] * turn, y[1] * turn])


def solution(t):
    angle = t + torch.sin(t) / 2
    return torch.stack([1 / (2 - torch.sin(t)), torch.cos(angle), torch.sin(angle)], dim=-1)


def times(start, end, n, backward):
    t = torch.linspace(start, end, n, dtype=torch.float64)
    return t.flip(0) if backward else t


def error(t, **arguments):
    arguments = {"rtol": 1e-13, "atol": 1e-13} | arguments
    found = fastnode.odeint(field, solution(t[0]), t, **arguments)
    return (found - solution(t)).abs().max().item()


def last_order(errors):
    return math.log2(errors[-2] / errors[-1])


def test_every_method_is_measured():
    assert set(FIXED_ORDER) == set(FIXED) and set(ADAPTIVE_ORDER) == set(ADAPTIVE)


@BOTH_WAYS
@pytest.mark.parametrize("method", FIXED_ORDER)
def test_fixed_step_methods_converge_with_their_order(method, backward):
    counts = (
        (40, 80, 160) if "adams" in method else (8, 16, 32) if method == "gl6" else (16, 32, 64)
    )
    errors = [
        error(times(0, 2, n + 1, backward), method=method, options=OPTIONS.get(method))
        for n in counts
    ]
    assert abs(last_order(errors) - FIXED_ORDER[method]) < 0.35


@BOTH_WAYS
@pytest.mark.parametrize("method", ["explicit_adams", "implicit_adams"])
def test_adams_methods_keep_their_order_on_uneven_grids(method, backward):
    errors = []
    for n in (40, 80, 160):
        x = times(0, 1, n + 1, backward)
        t = 2 * (x + 0.15 * torch.sin(2 * math.pi * x) / 2)
        options = {"max_order": 5, "max_iters": 60}
        errors.append(error(t, method=method, options=options))
    assert last_order(errors) > FIXED_ORDER[method] - 0.4


def steady(h):
    """Options that make an adaptive method take steps of one size."""
    return {"first_step": h, "min_step": h, "max_step": h}


@BOTH_WAYS
@pytest.mark.parametrize("method", ADAPTIVE_ORDER)
def test_adaptive_methods_converge_with_their_order(method, backward):
    counts = (2, 4, 8) if method == "dopri8" else (10, 20, 40)
    errors = [error(times(0, 2, 2, backward), method=method, options=steady(2 / n)) for n in counts]
    assert abs(last_order(errors) - ADAPTIVE_ORDER[method]) < 0.6


@BOTH_WAYS
@pytest.mark.parametrize("method", ADAPTIVE_ORDER)
def test_dense_output_has_the_methods_own_order(method, backward):
    errors = []
    for h in (0.4, 0.2, 0.1):
        errors.append(error(times(0.1, 0.1 + h, 14, backward), method=method, options=steady(h)))
    assert errors[-1] < 1e-14 or last_order(errors) > DENSE_ORDER[method] + 1 - 0.35


def test_dense_output_of_dopri8_is_as_accurate_as_its_steps():
    t = torch.linspace(0, 2, 41, dtype=torch.float64)
    for tolerance in (1e-6, 1e-9, 1e-12):
        options = {"rtol": tolerance, "atol": tolerance, "method": "dopri8"}
        assert error(t, **options) < 10 * max(error(t[[0, -1]], **options), tolerance)


def test_dopri8_dense_stages_are_evaluated_only_if_needed():
    seen = []

    def counted(t, y):
        seen.append(t.item())
        return field(t, y)

    def evaluations(t):
        seen.clear()
        fastnode.odeint(counted, solution(t[0]), t, method="dopri8", options=steady(0.5))
        assert 0 <= min(seen) and max(seen) <= 2
        return len(seen)

    ends = times(0, 2, 2, False)
    assert evaluations(ends) == evaluations(times(0, 2, 5, False)) == 1 + 4 * 13
    assert evaluations(torch.tensor([0, 0.6, 0.7, 0.8, 2.0])) == 1 + 4 * 13 + 3
