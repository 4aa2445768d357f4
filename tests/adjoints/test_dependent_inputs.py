"""Inputs of a solve that were computed from each other: each way to a gradient counts once, also
where the gradient has a gradient."""

from __future__ import annotations

import pytest
import torch
from adjoint_cases import Field, times

import fastnode

ADJOINTS = ["backprop", "checkpoint", fastnode.Revolve(1), "reversible", "continuous"]
EXACT = ADJOINTS[:3]


def growth(t, y, w):
    return torch.tanh(y) * w + torch.sin(t.reshape(-1, 1) if t.dim() else t)


def total(w, adjoint, method="dopri5", per_sample=False, timed=False):
    """State, argument and times all come from w."""
    y0 = w.sin() * torch.ones(3, 2, dtype=torch.float64)
    t = times(0, 0.4, 1) * (1 + w[0] if timed else 1)
    options = {"step_size": 0.25} if method == "rk4" else {"rtol": 1e-8, "atol": 1e-8}
    if adjoint != "backprop":
        options["adjoint_params"] = ()
    return fastnode.solve(
        growth,
        y0,
        t,
        args=(w * y0.mean(),),
        method=method,
        adjoint=adjoint,
        per_sample=per_sample,
        **options,
    ).ys.sum()


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_a_gradient_is_the_same_whether_it_has_one_or_not(adjoint, method, timed):
    w = times(0.5, 1.2, grad=True)
    plain, differentiable = (
        torch.autograd.grad(total(w, adjoint, method, timed=timed), w, create_graph=create)[0]
        for create in (False, True)
    )
    near = 1e-10 if adjoint in (*EXACT, "reversible") else 1e-4
    torch.testing.assert_close(differentiable, plain, rtol=near, atol=near)


@pytest.mark.parametrize("options", [{}, {"timed": True}, {"method": "rk4"}, {"per_sample": True}])
@pytest.mark.parametrize("adjoint", EXACT[1:], ids=str)
def test_second_derivatives_are_those_of_backprop(adjoint, options):
    def second(adjoint):
        w = times(0.5, 1.2, grad=True)
        (first,) = torch.autograd.grad(total(w, adjoint, **options), w, create_graph=True)
        return torch.autograd.grad(first.square().sum(), w)

    torch.testing.assert_close(second(adjoint), second("backprop"), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("adjoint", ["checkpoint", "continuous"])
def test_parameters_that_also_made_the_state_count_once(adjoint):
    field = Field()
    for create in (False, True):
        y0 = torch.tanh(field.used.weight)
        ys = fastnode.solve(field, y0, times(0, 1), adjoint=adjoint, rtol=1e-8, atol=1e-8).ys
        wanted = torch.autograd.grad(
            fastnode.solve(field, y0, times(0, 1), rtol=1e-8, atol=1e-8, adjoint="backprop")
            .ys[1]
            .sum(),
            field.used.weight,
            retain_graph=True,
        )
        found = torch.autograd.grad(ys[1].sum(), field.used.weight, create_graph=create)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_odeint_adjoint_counts_them_once():
    field = Field()
    found = []
    for create in (False, True):
        y0 = torch.tanh(field.used.weight)
        y = fastnode.odeint_adjoint(field, y0, times(0, 1), rtol=1e-8, atol=1e-8)
        found += torch.autograd.grad(y[1].sum(), field.used.weight, create_graph=create)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
