"""Gradients of checkpoint, revolve and reversible, and theirs, against differences."""

from __future__ import annotations

import pytest
import torch
from adjoint_cases import state, steady, times
from selection import slow, slow_but

import fastnode
from fastnode.tableaus import METHODS


@pytest.mark.parametrize("method", slow_but(METHODS, "rk4", "fehlberg2"))
def test_gradcheck(discrete, method):
    torch.manual_seed(0)
    lin = torch.nn.Linear(2, 2, dtype=torch.float64)
    held = tuple(lin.parameters())

    def field(t, y, w):
        return torch.tanh(lin(y)) * w + torch.sin(t) * y

    def run(y, w, *_):
        return fastnode.solve(
            field,
            y,
            times(0, 0.33, 0.71),
            method=method,
            args=(w,),
            adjoint=discrete,
            adjoint_params=held,
            **steady(method),
        ).ys

    y0, w = state(1, 2).requires_grad_(), times(0.5, 1.2, grad=True)
    assert torch.autograd.gradcheck(run, (y0, w, *held))
    if method in ("rk4", "dopri5", "fehlberg2"):
        assert torch.autograd.gradgradcheck(run, (y0, w, *held))


@pytest.mark.parametrize("method", ["dopri5", "fehlberg2"])
def test_dense_output_has_second_derivatives(make_net, method):
    net = make_net()

    def inside(y0, w):
        solution = fastnode.solve(
            net,
            y0,
            times(0, 0.5),
            save="dense",
            args=(w * 1,),
            adjoint="checkpoint",
            method=method,
            **steady(method),
        )
        return solution.evaluate(times(0.03, 0.4))

    inputs = state(1, 4).requires_grad_(), torch.full((4,), 1.3).double().requires_grad_()
    assert torch.autograd.gradgradcheck(inside, inputs)


def test_gradcheck_of_complex_tuples(discrete):
    rate = torch.tensor(0.3 - 0.2j, dtype=torch.complex128, requires_grad=True)

    def field(t, y):
        a, b = y
        return rate * b * torch.cos(t), -a * b.abs()

    def run(a, b, _):
        ys = fastnode.solve(
            field,
            (a, b),
            times(0, 0.33, 0.71),
            method="heun3",
            adjoint=discrete,
            adjoint_params=[rate],
        ).ys
        return tuple(torch.view_as_real(y) for y in ys)

    start = [torch.complex(state(2), state(2) + i).requires_grad_() for i in range(2)]
    assert torch.autograd.gradcheck(run, (*start, rate))


@pytest.mark.parametrize("method", [slow("dopri5"), "fehlberg2"])
def test_gradcheck_per_sample(method):
    torch.manual_seed(0)
    lin = torch.nn.Linear(2, 2, dtype=torch.float64)
    held = tuple(lin.parameters())

    def run(y, w, *_):
        return fastnode.solve(
            lambda t, y, w: torch.tanh(lin(y)) * w + torch.sin(t)[:, None] * y,
            y,
            times(0, 0.33, 0.71),
            method=method,
            args=(w,),
            per_sample=True,
            adjoint="checkpoint",
            adjoint_params=held,
            **steady(method),
        ).ys

    inputs = (state(2, 2).requires_grad_(), state(2, 1).requires_grad_(), *held)
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("adjoint", ["checkpoint", fastnode.Revolve(2)], ids=str)
@pytest.mark.parametrize("method", ["rk4", "dopri5", "fehlberg2"])
def test_second_derivatives_are_those_of_backprop(make_net, relative, method, adjoint):
    """Times between two steps included, where they need a gradient."""

    def second(adjoint, timed):
        net, y0 = make_net(), state(2, 4).requires_grad_()
        t = times(0, 0.33, 0.71, grad=timed)
        ys = fastnode.solve(net, y0, t, method=method, adjoint=adjoint, **steady(method)).ys
        wanted = [y0, net.inner.weight, *([t] if timed else [])]
        first = torch.autograd.grad(ys.sin().sum(), wanted, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), wanted)

    for timed in (False, True):
        assert relative(second(adjoint, timed), second("backprop", timed)) < 1e-10


@pytest.mark.parametrize("save", ["steps", "dense"])
@pytest.mark.parametrize("method", ["dopri5", "fehlberg2"])
def test_per_sample_states_and_dense_output_gradgrad(make_net, relative, method, save):
    def second(adjoint):
        net, y0 = make_net(), state(3, 4).requires_grad_()
        found = fastnode.solve(
            net,
            y0,
            times(0, 0.33, 0.71),
            method=method,
            adjoint=adjoint,
            per_sample=True,
            save=save,
            **steady(method),
        )
        loss = found.ys.sin().sum() + sum(each.states.sin().sum() for each in found.steps)
        if save == "dense":
            loss = loss + found.evaluate(times(0.1, 0.5)).cos().sum()
        wanted = [y0, net.inner.weight]
        first = torch.autograd.grad(loss, wanted, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), wanted)

    assert relative(second("checkpoint"), second("backprop")) < 1e-10
