"""Nobody sees that steps are taken twice: random numbers, buffers, autocast, hooks, compilers."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import fastnode
from fastnode.adjoints.discrete import checkpoint
from fastnode.torch_support import recompute


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


def run(net, adjoint, seed=0, **options):
    torch.manual_seed(seed)
    y0 = torch.linspace(-1, 1, 24).reshape(6, 4).requires_grad_()
    found = fastnode.solve(
        net, y0, times(0, 0.4, 1), adjoint=adjoint, **{"method": "dopri5", **options}
    )
    found.ys.square().sum().backward()
    gradients = [y0.grad, *(p.grad for p in net.parameters() if p.grad is not None)]
    net.zero_grad(set_to_none=True)
    return found.ys.detach(), gradients


class Noisy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(), torch.nn.Tanh())
        self.outer = torch.nn.Linear(8, 4)

    def forward(self, t, y):
        return self.outer(self.net(y))


@pytest.mark.parametrize("room", [0, 2**15, 2**30])
@pytest.mark.parametrize("method", ["dopri5", "rk4", "fehlberg2"])
@pytest.mark.parametrize("adjoint", ["checkpoint", fastnode.Revolve(2)], ids=str)
def test_random_numbers_are_drawn_again(relative, monkeypatch, adjoint, method, room):
    monkeypatch.setattr("fastnode.adjoints.discrete.retained_graph.ROOM", room)
    options = (
        {"steps": 5}
        if method == "rk4"
        else {"first_step": 0.2, "rtol": 1e3, "atol": 1e3, "max_step": 0.2}
    )
    net = Noisy()
    ys, wanted = run(net, "backprop", method=method, **options)
    again, found = run(net, adjoint, method=method, **options)
    after = torch.rand(3)
    run(net, "backprop", method=method, **options)
    torch.testing.assert_close(again, ys)
    assert relative(found, wanted) < 1e-5
    assert torch.equal(torch.rand(3), after)


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_reversible_undoes_a_random_field(method):
    options = (
        {"steps": 5}
        if method == "rk4"
        else {"first_step": 0.2, "rtol": 1e3, "atol": 1e3, "max_step": 0.2}
    )
    net = Noisy().double()
    direction = torch.randn(6, 4, dtype=torch.float64)

    def loss(y):
        torch.manual_seed(0)
        ys = fastnode.solve(net, y, times(0, 1), adjoint="reversible", method=method, **options).ys
        return ys[-1].square().sum()

    y0 = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(6, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(y0), y0)
    with torch.no_grad():
        derivative = (loss(y0 + 1e-6 * direction) - loss(y0 - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), derivative, rtol=1e-6, atol=1e-6)


def test_per_sample_refuses_a_random_field():
    with pytest.raises(ValueError, match="draws random numbers"):
        run(Noisy(), "checkpoint", per_sample=True)


class Normed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Tanh(), torch.nn.Linear(8, 4)
        )

    def forward(self, t, y):
        return self.net(y)


@pytest.mark.parametrize("small", [True, False])
def test_buffers_change_once(discrete, small, monkeypatch):
    monkeypatch.setattr("fastnode.adjoints.discrete.checkpoint.SMALL", 2**30 if small else 0)
    net = Normed()
    before = {name: x.clone() for name, x in net.named_buffers()}
    with torch.no_grad():
        fastnode.solve(
            net,
            torch.linspace(-1, 1, 24).reshape(6, 4),
            times(0, 0.4, 1),
            method="dopri5",
            adjoint=discrete if discrete == "reversible" else "none",
        )
    once = {name: x.clone() for name, x in net.named_buffers()}
    net.load_state_dict({**net.state_dict(), **before})
    ys, found = run(net, discrete)
    torch.testing.assert_close(dict(net.named_buffers()), once, rtol=0, atol=0)
    if discrete != "reversible":
        net.load_state_dict({**net.state_dict(), **before})
        # The bias before the normalisation has no gradient but rounding errors.
        wanted = run(net, "backprop")[1]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_autocast_is_that_of_the_forward_pass(relative):
    net = Normed()
    gradients = {}
    for adjoint in ("backprop", "checkpoint"):
        y0 = torch.linspace(-1, 1, 24).reshape(6, 4).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            ys = fastnode.solve(net, y0, times(0, 1), method="rk4", steps=3, adjoint=adjoint).ys
        gradients[adjoint] = torch.autograd.grad(ys.square().sum(), [y0, *net.parameters()])
    assert relative(gradients["checkpoint"], gradients["backprop"]) < 1e-2


def test_hooks_that_look_on_run_once():
    net = Normed()
    seen, doubled = [], []
    net.net[3].register_forward_hook(lambda *_: seen.append(0))
    net.net[2].register_forward_hook(lambda module, args, out: doubled.append(0) or 2 * out)
    y0 = torch.linspace(-1, 1, 24).reshape(6, 4).requires_grad_()
    found = fastnode.solve(net, y0, times(0, 1), method="dopri5", adjoint="checkpoint")
    found.ys.sum().backward()
    assert len(seen) == found.nfe < len(doubled)
    assert len(net.net[3]._forward_hooks) == 1


def test_compiled_fields(discrete, relative):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
    held = tuple(net.parameters())
    compiled = torch.compile(lambda t, y: net(y), backend="aot_eager")

    def gradients(field):
        y0 = torch.linspace(-1, 1, 24).reshape(6, 4).requires_grad_()
        ys = fastnode.solve(
            field, y0, times(0, 1), method="rk4", adjoint=discrete, adjoint_params=held
        ).ys
        return torch.autograd.grad(ys.square().sum(), [y0, *held])

    assert relative(gradients(compiled), gradients(lambda t, y: net(y))) < 1e-5


@pytest.mark.parametrize("adjoint", ["checkpoint", fastnode.Revolve(1), "reversible", "continuous"])
@pytest.mark.parametrize("compiled_before", [True, False])
def test_compiled_fields_that_donate_buffers(relative, monkeypatch, adjoint, compiled_before):
    """Their backward pass runs once: it writes over what the forward pass saved."""
    monkeypatch.setattr("fastnode.adjoints.discrete.retained_graph.ROOM", 2**30)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
    held = tuple(net.parameters())
    plain = lambda t, y: torch.sin(net(y))  # noqa: E731
    compiled = torch.compile(plain, backend="aot_eager")
    if compiled_before:
        y = torch.ones(6, 4, requires_grad=True)
        compiled(torch.zeros(()), y).sum().backward()
        with pytest.raises(RuntimeError, match="donated buffers"):
            compiled(torch.zeros(()), y).sum().backward(retain_graph=True)

    def gradients(field):
        y0 = torch.linspace(-1, 1, 24).reshape(6, 4).requires_grad_()
        ys = fastnode.solve(
            field, y0, times(0, 1), method="rk4", steps=2, adjoint=adjoint, adjoint_params=held
        ).ys
        loss = ys.square().sum()
        first = torch.autograd.grad(loss, [y0, *held], retain_graph=True)
        assert relative(torch.autograd.grad(loss, [y0, *held]), first) < 1e-5
        return first

    assert relative(gradients(compiled), gradients(plain)) < 1e-5


def test_parameters_of_a_partially_given_module_are_found(make_net):
    net = make_net()
    for func in (partial(net), partial(net.forward), partial(partial(net), w=1.0)):
        net.zero_grad()
        fastnode.solve(
            func, torch.ones(2, 4, dtype=torch.float64), times(0, 1), adjoint="checkpoint"
        ).ys.sum().backward()
        assert net.inner.weight.grad.abs().sum() > 0


def test_freed_memory_is_given_back_where_states_are_large(make_net, relative, monkeypatch):
    given_back = []
    for module in (recompute, checkpoint):
        monkeypatch.setattr(module, "empty_cache", lambda: given_back.append(0))

    def gradient(adjoint):
        net, y0 = make_net(), torch.ones(2, 4, dtype=torch.float64).requires_grad_()
        ys = fastnode.solve(net, y0, times(0, 1), adjoint=adjoint).ys
        return torch.autograd.grad(ys.sin().sum(), [y0, net.inner.weight])

    small = gradient(fastnode.Revolve(2))
    assert not given_back
    for module in (recompute, checkpoint):
        monkeypatch.setattr(module, "LARGE", 1)
    assert relative(gradient(fastnode.Revolve(2)), small) == 0
    assert len(given_back) > 10
