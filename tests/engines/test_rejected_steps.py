"""What a rejected step leaves in a graph, and how the first one is chosen."""

from __future__ import annotations

import math

import pytest
import torch

import fastnode
from fastnode.control.controllers import initial_step
from fastnode.control.norms import ErrorNorm
from fastnode.problem.ivp import make_problem

TIMES = torch.tensor([0.0, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_a_step_that_was_not_finite_leaves_no_nan_in_gradients(per_sample, engine):
    # A stage below zero has no root: the first step of the sample that starts low is rejected.
    y0 = torch.tensor([[4.0], [0.5]], dtype=torch.float64)
    rate = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
    found = fastnode.solve(
        lambda t, y, rate: -rate * y.sqrt(),
        y0,
        TIMES,
        args=(rate,),
        per_sample=per_sample,
        engine=engine,
        rtol=1e-9,
        atol=1e-9,
        first_step=1.0,
    )
    assert bool(torch.as_tensor(found.rejected).sum() > 0)
    root = y0.sqrt() - rate.detach() / 2
    torch.testing.assert_close(found.ys[1].detach(), root**2, rtol=1e-7, atol=1e-7)
    (by_rate,) = torch.autograd.grad(found.ys[1].sum(), rate)
    torch.testing.assert_close(by_rate, -root.sum(), rtol=1e-6, atol=1e-6)


def first_step(field, span=10.0):
    problem = make_problem(field, torch.ones(2, dtype=torch.float64), TIMES)
    norm = ErrorNorm(problem.layout, problem.y0, 1e-3, 1e-3)
    y = problem.y0
    return initial_step(problem.field, 0.0, y, problem.field(0.0, y), span, 5, norm)


def test_a_trial_that_is_not_finite_leaves_the_first_guess():
    assert first_step(lambda t, y: y * (math.nan if t > 0 else 1.0)) == pytest.approx(0.01)


def test_first_step_of_a_zero_field_is_tiny():
    assert first_step(lambda t, y: 0 * y) == pytest.approx(1e-6)
    assert first_step(lambda t, y: 0 * y, span=1e-8) <= 1e-6


@pytest.mark.parametrize("engine", ["reference", "auto"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_a_field_that_is_not_finite_at_the_start_is_told(engine, per_sample):
    with pytest.raises(fastnode.NonFiniteState, match="NaN"):
        fastnode.solve(
            lambda t, y: y * math.nan,
            torch.ones(2, 2),
            TIMES,
            engine=engine,
            per_sample=per_sample,
        )
