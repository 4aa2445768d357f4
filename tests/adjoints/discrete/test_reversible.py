"""The reversible scheme against plain PyTorch, and exactness where undoing is delicate."""

from __future__ import annotations

import math

import pytest
import torch
from plain_reversible import plain_reversible

import fastnode
from fastnode.tableaus import METHODS

ADAPTIVE = [name for name, tableau in METHODS.items() if tableau.error is not None]


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


def state(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", [torch.tanh, torch.relu])
def test_convolutions(discrete, relative, dtype, activation):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 3, 3, padding=1, dtype=dtype)

    def field(t, y):
        return activation(conv(y))

    def run(adjoint):
        y0 = state(2, 3, 6, 6, dtype=dtype).requires_grad_()
        ys = fastnode.solve(
            field,
            y0,
            times(0, 1),
            method="rk4",
            steps=4,
            adjoint=adjoint,
            adjoint_params=tuple(conv.parameters()),
        ).ys
        return torch.autograd.grad(ys[-1].square().sum(), [y0, *conv.parameters()])

    if discrete == "reversible":
        y0 = state(2, 3, 6, 6, dtype=dtype).requires_grad_()
        last = plain_reversible(field, y0, [0, 0.25, 0.5, 0.75, 1.0], METHODS["rk4"])[-1]
        wanted = torch.autograd.grad(last.square().sum(), [y0, *conv.parameters()])
    else:
        wanted = run("backprop")
    assert relative(run(discrete), wanted) < (1e-10 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_reversible_gradients_are_exact_for_its_scheme(make_net, relative, method, dtype):
    net, y0 = make_net(dtype=dtype), state(5, 4, dtype=dtype).requires_grad_()
    options = {} if method in ADAPTIVE else {"step_size": 0.07}
    t, w = times(0, 0.3, 1), torch.full((4,), 1.3, dtype=dtype, requires_grad=True)
    found = fastnode.solve(
        net, y0, t, method=method, args=(w,), adjoint="reversible", save="steps", **options
    )
    edges = found.steps.times.tolist()
    wanted = torch.stack(plain_reversible(net, y0, edges, METHODS[method], (w,)))
    picked = wanted[[edges.index(x) for x in t.tolist()]]
    sources = [y0, w, net.inner.weight, net.outer.bias]
    ours = torch.autograd.grad(found.ys.sin().sum() + found.steps.states.cos().sum(), sources)
    theirs = torch.autograd.grad(picked.sin().sum() + wanted.cos().sum(), sources)
    assert relative(ours, theirs) < (1e-10 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ADAPTIVE])
def test_reversible_keeps_the_order(method):
    errors = []
    for steps in (20, 40):
        found = fastnode.solve(
            lambda t, y: y * torch.cos(t),
            torch.ones(1, dtype=torch.float64),
            times(0, 3),
            method=method,
            steps=steps,
            adjoint="reversible",
            adjoint_params=(),
        )
        errors.append(abs(found.ys[-1].item() - math.exp(math.sin(3))))
    assert math.log2(errors[0] / errors[1]) > METHODS[method].order - 0.3


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("method", ["rk4", "euler", "dopri5", "adaptive_heun"])
def test_reversible_times_have_gradients(make_net, relative, method, backward):
    net, y0 = make_net(), state(5, 4).requires_grad_()
    t = (-times(0, 0.31, 1) if backward else times(0, 0.31, 1)).requires_grad_()
    options = {} if method in ADAPTIVE else {"step_size": 0.07}
    found = fastnode.solve(net, y0, t, method=method, adjoint="reversible", save="steps", **options)
    at = found.steps.times.tolist()
    places = [at.index(x) for x in t.tolist()]
    edges = [
        t[max(i for i, first in enumerate(places) if first <= n)] for n in range(len(at))
    ]  # the output at or before each edge
    edges = [start + (x - start.item()) for start, x in zip(edges, at, strict=True)]
    wanted = torch.stack(plain_reversible(net, y0, edges, METHODS[method]))
    sources = [t, y0, net.inner.weight, net.outer.bias]
    ours = torch.autograd.grad(found.ys.sin().sum() + found.steps.states.cos().sum(), sources)
    theirs = torch.autograd.grad(wanted[places].sin().sum() + wanted.cos().sum(), sources)
    assert relative(ours, theirs) < 1e-10


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_gradients_of_times_have_gradients(make_net, method):
    net = make_net(dim=2)

    def run(y0, start, length):
        t = torch.stack([start, start + length])
        options = {"step_size": 1.0} if method == "rk4" else {"first_step": 0.4, "rtol": 1e3}
        ys = fastnode.solve(net, y0, t, method=method, adjoint="reversible", **options).ys
        return ys[1]

    inputs = state(1, 2).requires_grad_(), *times(0.2, 0.5).requires_grad_().unbind()
    inputs = [x.detach().requires_grad_() for x in inputs]
    assert torch.autograd.gradgradcheck(run, inputs)
