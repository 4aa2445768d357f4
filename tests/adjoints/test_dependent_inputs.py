"""Inputs of a solve that were computed from each other: each way to a gradient counts once, also
where the gradient has a gradient."""

from __future__ import annotations

import pytest
import torch
from adjoint_cases import Field, times

import fastnode
from fastnode import extension

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


@pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("adjoint", EXACT, ids=str)
def test_perceptrons_solved_in_one_call(adjoint, per_sample):
    if per_sample and adjoint not in ("backprop", "checkpoint"):
        pytest.skip("another engine")
    torch.manual_seed(0)
    field = fastnode.nn.MLPField(2, 2, 3, "tanh", "none").double()
    # One weight in two layers, a bias that follows from another, states that follow from it.
    field.layers[1].weight = field.layers[0].weight
    offset = times(0.3, -0.4, grad=True)

    def first(func, create, **options):
        field.layers[2]._parameters["bias"] = 2 * offset
        field.layers[1]._parameters["bias"] = field.layers[2].bias.square()
        y0 = field.layers[1].bias * torch.ones(3, 2, dtype=torch.float64)
        ys = fastnode.solve(
            func, y0, times(0, 0.4, 1), rtol=1e-8, atol=1e-8, per_sample=per_sample, **options
        ).ys
        wanted = [offset, field.layers[0].weight]
        return torch.autograd.grad(ys.square().sum(), wanted, create_graph=create)

    plain = first(field, False, adjoint=adjoint, engine="fused")
    found = first(field, True, adjoint=adjoint, engine="fused")
    expected = first(lambda t, y: field(t, y), True)
    for a, b, c in zip(plain, found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(b, c, rtol=1e-7, atol=1e-8)
    seconds = [
        torch.autograd.grad(sum(x.square().sum() for x in each), [offset, field.layers[0].weight])
        for each in (found, expected)
    ]
    for a, b in zip(*seconds, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
