"""Gradients of solves that took no step, or none that counts."""

from __future__ import annotations

import math

import pytest
import torch
from adjoint_cases import Field, state, times

import fastnode

ADJOINTS = ["backprop", "checkpoint", fastnode.Revolve(2), "reversible", "continuous"]


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_of_one_output_time(adjoint):
    y0 = state(3, 2).requires_grad_()
    ys = fastnode.solve(Field(), y0, times(0.3), adjoint=adjoint).ys
    (by_y0,) = torch.autograd.grad(ys.sin().sum(), y0)
    torch.testing.assert_close(by_y0, y0.detach().cos())


def test_of_one_output_time_that_needs_a_gradient():
    field, y0, t = Field(), state(3, 2).requires_grad_(), times(0.3, grad=True)
    ys = fastnode.odeint_adjoint(field, y0, t)
    by_y0, by_t, by_weight = torch.autograd.grad(ys.sum(), [y0, t, field.used.weight])
    assert bool((by_y0 == 1).all()) and by_t.tolist() == [0.0] and not by_weight.any()


@pytest.mark.parametrize("save", ["times", "steps", "dense"])
def test_of_samples_that_all_failed_at_once(save):
    y0 = state(3, 2).requires_grad_()
    found = fastnode.solve(
        lambda t, y: y * math.nan,
        y0,
        times(0, 1),
        per_sample=True,
        adjoint="checkpoint",
        adjoint_params=(),
        save=save,
        throw=False,
    )
    assert found.status == ["NonFiniteState"] * 3 and found.ys[1].isnan().all()
    (by_y0,) = torch.autograd.grad(found.ys[0].sum(), y0)
    assert bool((by_y0 == 1).all())
