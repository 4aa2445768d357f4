"""Which tensors odeint_adjoint gives gradients, and what it does inside of transforms."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch.func import functional_call, grad, vmap

import fastnode

T = torch.tensor([0.0, 1.0], dtype=torch.float64)


class Net(torch.nn.Module):
    """With a parameter that the solution does not depend on."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(2, 2, dtype=torch.float64))
        self.unused = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, t, y):
        if isinstance(y, tuple):
            return (self(t, y[0]), y[0])
        return torch.tanh(y @ self.weight)


def start():
    return torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def last(net, y0, **options):
    return fastnode.odeint_adjoint(net, y0, T, method="rk4", options={"step_size": 0.1}, **options)


@pytest.mark.parametrize("form", ["tensor", "tuple", "event"])
def test_inside_of_transforms_gradients_are_those_of_backprop(form):
    net, y0 = Net(), start()

    def loss(parameters, y0):
        def field(t, y):
            return functional_call(net, parameters, (t, y))

        held = list(parameters.values())
        if form == "tuple":
            return last(field, (y0, y0), adjoint_params=held)[1][-1].sin().sum()
        if form == "event":
            t, ys = fastnode.odeint_adjoint(
                field, y0, T, event_fn=lambda t, y: t - 0.5, adjoint_params=held
            )
            return t.sum() + ys[-1].sin().sum()
        return last(field, y0, adjoint_params=held)[-1].sin().sum()

    parameters = dict(net.named_parameters())
    found = grad(loss)({k: v.detach() for k, v in parameters.items()}, y0)
    wanted = torch.autograd.grad(loss(parameters, y0), list(parameters.values()))
    near = 1e-3 if form == "event" else 1e-4
    torch.testing.assert_close(tuple(found.values()), wanted, rtol=near, atol=near)
    assert not found["unused"].any()


def test_a_batch_of_solves_is_what_each_of_them_is():
    net, y0 = Net(), start()
    found = vmap(lambda y: last(net, y[None])[-1, 0])(y0)
    torch.testing.assert_close(found, last(net, y0)[-1])


def test_replicas_of_data_parallel_keep_their_parameters():
    net = Net()
    replica = net._replicate_for_data_parallel()
    replica.weight = (net.weight * 1.0).detach().requires_grad_()
    replica.unused = net.unused.detach()
    last(replica, start())[-1].sum().backward()
    last(net, start())[-1].sum().backward()
    torch.testing.assert_close(replica.weight.grad, net.weight.grad)


def test_sharded_parameters_are_refused_and_the_way_is_named(monkeypatch):
    class Sharded(torch.nn.Parameter):
        pass

    module = SimpleNamespace(DTensor=Sharded)
    monkeypatch.setitem(sys.modules, "torch.distributed.tensor", module)
    net = Net()
    net.weight = Sharded(net.weight.detach())
    with pytest.raises(ValueError, match=r"adjoint_params\[0\] is a DTensor.*fully_shard"):
        last(net, start())
