"""Backward passes that autograd calls under vmap: is_grads_batched, jacobian(vectorize=True)."""

from __future__ import annotations

import pytest
import torch
from adjoint_cases import Field, times
from torch.autograd.functional import hessian, jacobian

import fastnode

ADJOINTS = ["backprop", "checkpoint", fastnode.Revolve(1), "reversible", "continuous"]


def end(field, y0, adjoint, t=None, **options):
    t = times(0, 0.4, 1) if t is None else t
    if adjoint == "odeint_adjoint":
        return fastnode.odeint_adjoint(field, y0, t, rtol=1e-8, atol=1e-8)[1:]
    options = {"rtol": 1e-8, "atol": 1e-8} | options
    return fastnode.solve(field, y0, t, adjoint=adjoint, **options).ys[1:]


@pytest.fixture(params=[0, 2**30])
def room(request, monkeypatch):
    monkeypatch.setattr("fastnode.adjoints.discrete.retained_graph.ROOM", request.param)


@pytest.mark.parametrize("adjoint", [*ADJOINTS, "odeint_adjoint"], ids=str)
def test_jacobian_vectorized(adjoint, room):
    field, y0 = Field(), times(0.3, -0.5)
    for argument, value in ((0, y0), (1, times(0, 0.4, 1))):
        inputs = [y0, times(0, 0.4, 1)]

        def func(x, inputs=inputs, argument=argument):
            y, t = [*inputs[:argument], x, *inputs[argument + 1 :]]
            return end(field, y, adjoint, t)

        plain = jacobian(func, value)
        torch.testing.assert_close(jacobian(func, value, vectorize=True), plain)


@pytest.mark.parametrize("adjoint", [*ADJOINTS, "odeint_adjoint"], ids=str)
def test_is_grads_batched(adjoint, room):
    field, y0 = Field(), times(0.3, -0.5, grad=True)
    ys = end(field, y0, adjoint)
    inputs = [y0, *field.used.parameters()]
    seeds = torch.randn(3, *ys.shape, dtype=ys.dtype, generator=torch.Generator().manual_seed(0))
    rows = [torch.autograd.grad(ys, inputs, seed, retain_graph=True) for seed in seeds]
    wanted = [torch.stack(column) for column in zip(*rows, strict=True)]
    found = torch.autograd.grad(ys, inputs, seeds, is_grads_batched=True)
    torch.testing.assert_close(list(found), wanted)


@pytest.mark.parametrize("method", ["dopri5", "dopri8"])
def test_is_grads_batched_per_sample(method):
    field, y0 = Field(), torch.stack([times(0.3, -0.5), times(1, 2)]).requires_grad_()
    ys = end(lambda t, y: field(t[:, None], y), y0, "checkpoint", per_sample=True, method=method,
             adjoint_params=tuple(field.used.parameters()))  # fmt: skip
    inputs = [y0, *field.used.parameters()]
    seeds = torch.randn(3, *ys.shape, dtype=ys.dtype, generator=torch.Generator().manual_seed(0))
    rows = [torch.autograd.grad(ys, inputs, seed, retain_graph=True) for seed in seeds]
    wanted = [torch.stack(column) for column in zip(*rows, strict=True)]
    found = torch.autograd.grad(ys, inputs, seeds, is_grads_batched=True)
    torch.testing.assert_close(list(found), wanted)


@pytest.mark.parametrize("adjoint", ["checkpoint", "odeint_adjoint"], ids=str)
def test_hessian_vectorized(adjoint):
    field, y0 = Field(), times(0.3, -0.5)

    def total(y):
        return end(field, y, adjoint, rtol=1e-4, atol=1e-4).square().sum()

    torch.testing.assert_close(hessian(total, y0, vectorize=True), hessian(total, y0))


def test_random_numbers_are_drawn_again_for_each():
    class Noisy(torch.nn.Module):
        def forward(self, t, y):
            return torch.nn.functional.dropout(y, 0.5)

    def func(y):
        torch.manual_seed(0)
        return end(Noisy(), y, fastnode.Revolve(1), method="rk4", steps=3)

    y0 = torch.ones(4, dtype=torch.float64)
    torch.testing.assert_close(jacobian(func, y0, vectorize=True), jacobian(func, y0))


@pytest.mark.parametrize("adjoint", ["backprop", "checkpoint"])
def test_fused_solves_take_batches_of_cotangents(adjoint):
    torch.manual_seed(0)
    field = fastnode.nn.MLPField(3, 8, 2, "tanh")
    y0, ts = torch.randn(2, 3, requires_grad=True), torch.tensor([0.0, 0.4, 1.0])
    ys = fastnode.solve(field, y0, ts, adjoint=adjoint, engine="fused").ys
    cotangents, inputs = torch.randn(5, *ys.shape), [y0, *field.parameters()]
    found = torch.autograd.grad(ys, inputs, cotangents, is_grads_batched=True, retain_graph=True)
    for i, g in enumerate(cotangents):
        wanted = torch.autograd.grad(ys, inputs, g, retain_graph=True)
        assert all(torch.equal(each[i], one) for each, one in zip(found, wanted, strict=True))
