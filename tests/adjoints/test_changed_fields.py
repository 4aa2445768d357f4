"""A field that is another one in the backward pass: parameters, buffers, modules and modes that
changed since the forward pass."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from adjoint_cases import times

import fastnode

ADJOINTS = ["backprop", "checkpoint", fastnode.Revolve(1), "reversible", "continuous"]
#: Those that call the field in the backward pass.
RECOMPUTED = ADJOINTS[1:]


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = torch.nn.Linear(2, 4, dtype=torch.float64)
        self.outer = torch.nn.Linear(4, 2, dtype=torch.float64)
        self.register_buffer("scale", torch.tensor(0.5, dtype=torch.float64))

    def forward(self, t, y):
        return self.outer(torch.tanh(self.inner(y))) * self.scale


class Solved(torch.nn.Module):
    """A solve as a module, as users have it."""

    def __init__(self, adjoint, closes_over=False, **options):
        super().__init__()
        self.field, self.adjoint, self.options = Net(), adjoint, options
        self.closes_over = closes_over

    def forward(self, y):
        if self.adjoint == "odeint_adjoint":
            return fastnode.odeint_adjoint(self.field, y, times(0, 1), rtol=1e-8, atol=1e-8)[-1]
        field, options = self.field, {"rtol": 1e-8, "atol": 1e-8, **self.options}
        if self.closes_over:
            options["adjoint_params"] = tuple(field.parameters())
            field = lambda t, y: self.field(t, y)  # noqa: E731
        return fastnode.solve(field, y, times(0, 1), adjoint=self.adjoint, **options).ys[-1]


def rows(count):
    return torch.linspace(-1, 1, 2 * count, dtype=torch.float64).reshape(count, 2)


def near(adjoint):
    return {"rtol": 1e-4, "atol": 1e-6} if adjoint in ("continuous", "odeint_adjoint") else {}


def close(adjoint, found, wanted):
    torch.testing.assert_close(list(found), list(wanted), **near(adjoint))


def plain(adjoint, state=None, count=3, **options):
    """The gradients where nothing changes."""
    model = Solved(adjoint, **options)
    if state is not None:
        model.load_state_dict(state)
    return torch.autograd.grad(model(rows(count)).square().sum(), list(model.parameters()))


def others(model):
    """Parameters and buffers for functional_call."""
    state = {name: 1.5 * x.detach() for name, x in model.state_dict().items()}
    names = dict(model.named_parameters())
    return {name: x.requires_grad_(name in names) for name, x in state.items()}


@pytest.mark.parametrize("count", [32, 8192])
@pytest.mark.parametrize("closes_over", [False, True])
def test_checkpoint_functional_call_at_any_batch(count, closes_over, monkeypatch):
    # At one size the graph of the steps is kept, at the other one they are recomputed.
    monkeypatch.setattr("fastnode.adjoints.discrete.retained_graph.ROOM", 2**22)
    options = {"method": "rk4", "steps": 2, "closes_over": closes_over}
    model = Solved("checkpoint", **options)
    given = others(model)
    ys = torch.func.functional_call(model, given, (rows(count),))
    leaves = [x for x in given.values() if x.requires_grad]
    found = torch.autograd.grad(ys.square().sum(), leaves)
    close("checkpoint", found, plain("backprop", given, count, method="rk4", steps=2))


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("adjoint", [*ADJOINTS, "odeint_adjoint"], ids=str)
def test_functional_call(adjoint, create_graph):
    model = Solved(adjoint)
    given = others(model)
    ys = torch.func.functional_call(model, given, (rows(3),))
    leaves = [x for x in given.values() if x.requires_grad]
    found = torch.autograd.grad(ys.square().sum(), leaves, create_graph=create_graph)
    close(adjoint, found, plain(adjoint, given))


@pytest.mark.parametrize("method", ["dopri5", "dopri8"])
def test_functional_call_per_sample(method):
    options = {"per_sample": True, "method": method}
    model = Solved("checkpoint", **options)
    given = others(model)
    ys = torch.func.functional_call(model, given, (rows(3),))
    leaves = [x for x in given.values() if x.requires_grad]
    found = torch.autograd.grad(ys.square().sum(), leaves)
    close("checkpoint", found, plain("checkpoint", given, **options))


def replace_parameter(model):
    model.field.inner.weight = torch.nn.Parameter(torch.zeros_like(model.field.inner.weight))


def replace_buffer(model):
    model.field.scale = torch.tensor(2.0, dtype=torch.float64)


def replace_module(model):
    model.field.outer = torch.nn.Linear(4, 2, dtype=torch.float64)


@pytest.mark.parametrize("change", [replace_parameter, replace_buffer, replace_module])
@pytest.mark.parametrize("adjoint", [*RECOMPUTED, "odeint_adjoint"], ids=str)
def test_what_was_replaced_before_backward(adjoint, change):
    model = Solved(adjoint)
    held = list(model.parameters())
    ys = model(rows(3))
    change(model)
    after = dict(model.state_dict(keep_vars=True))
    found = torch.autograd.grad(ys.square().sum(), held)
    close(adjoint, found, plain(adjoint))
    assert all(x is after[name] for name, x in model.state_dict(keep_vars=True).items())


@pytest.mark.parametrize("adjoint", RECOMPUTED, ids=str)
def test_eval_before_backward(adjoint):
    gradients = []
    for changes in (False, True):
        model = Solved(adjoint, method="rk4", steps=3)
        model.field.outer = torch.nn.Sequential(
            torch.nn.BatchNorm1d(4, dtype=torch.float64), model.field.outer
        )
        ys = model(rows(3))
        if changes:
            model.eval()
        gradients.append(torch.autograd.grad(ys.square().sum(), list(model.parameters())))
        assert model.field.outer[0].training != changes
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("adjoint", [*RECOMPUTED, "odeint_adjoint"], ids=str)
@pytest.mark.parametrize("frozen", [True, False])
def test_parameters_changed_in_place_are_refused(adjoint, frozen):
    model = Solved(adjoint)
    model.field.inner.weight.requires_grad_(not frozen)
    loss = model(rows(3)).square().sum()
    with torch.no_grad():
        model.field.inner.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an in-?place operation"):
        loss.backward()


@pytest.mark.parametrize("room", [0, 2**30])
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("adjoint", [*ADJOINTS, "odeint_adjoint"], ids=str)
def test_frozen_before_backward(adjoint, create_graph, room, monkeypatch):
    monkeypatch.setattr("fastnode.adjoints.discrete.retained_graph.ROOM", room)
    model = Solved(adjoint)
    loss = model(rows(3)).square().sum()
    model.field.inner.weight.requires_grad_(False)
    loss.backward(create_graph=create_graph)
    _, *wanted = plain(adjoint)
    assert model.field.inner.weight.grad is None
    close(adjoint, [p.grad for p in list(model.parameters())[1:]], wanted)


@pytest.mark.parametrize("per_sample", [True, False])
def test_frozen_before_backward_all(per_sample):
    model = Solved("checkpoint", per_sample=per_sample)
    y0 = rows(3).requires_grad_()
    loss = model(y0).square().sum()
    wanted = torch.autograd.grad(loss, y0, retain_graph=True)
    model.requires_grad_(False)
    loss.backward()
    close("checkpoint", [y0.grad], wanted)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("wrapped", [lambda f: f, lambda f: partial(f), lambda f: f.forward])
def test_forms_of_fields_replaced(wrapped):
    found = []
    for changes in (False, True):
        net = Net()
        held = tuple(net.parameters())
        ys = fastnode.solve(
            wrapped(net), rows(3), times(0, 1), method="rk4", adjoint=fastnode.Revolve(1)
        ).ys
        if changes:
            net.inner = torch.nn.Linear(2, 4, dtype=torch.float64)
        found.append(torch.autograd.grad(ys.square().sum(), held))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("adjoint", RECOMPUTED + ["odeint_adjoint"], ids=str)
def test_hooks_that_look_on_run_once(adjoint):
    model = Solved(adjoint)
    seen = []
    model.field.inner.register_forward_hook(lambda *_: seen.append(0))
    loss = model(rows(3)).square().sum()
    before = len(seen)
    loss.backward()
    assert before > 0 and len(seen) == before
    assert len(model.field.inner._forward_hooks) == 1


@pytest.mark.parametrize("room", [0, 2**22])
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("adjoint", [*ADJOINTS, "odeint_adjoint"], ids=str)
def test_hooks_of_parameters_run_once(adjoint, create_graph, room, monkeypatch):
    monkeypatch.setattr("fastnode.adjoints.discrete.retained_graph.ROOM", room)
    model = Solved(adjoint)
    model.field.inner.weight.register_hook(lambda g: 3 * g)
    params = list(model.parameters())
    found = torch.autograd.grad(model(rows(3)).square().sum(), params, create_graph=create_graph)
    first, *wanted = plain(adjoint)
    close(adjoint, found, [3 * first, *wanted])
    assert len(model.field.inner.weight._backward_hooks) == 1


@pytest.mark.parametrize("kind", ["error", "stiffness"])
def test_global_recomputes_with_the_parameters_of_the_forward(kind):
    class Penalty(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.field = Net()

        def forward(self, y, adjoint):
            regularizer = fastnode.regularize.Global(kind=kind)
            return regularizer.solve(self.field, y, times(0, 1), adjoint=adjoint)[1]

    gradients = []
    for adjoint in ("backprop", "checkpoint"):
        model = Penalty()
        given = others(model)
        loss = torch.func.functional_call(model, given, (rows(3), adjoint))
        leaves = [x for x in given.values() if x.requires_grad]
        gradients.append(torch.autograd.grad(loss, leaves))
    torch.testing.assert_close(*gradients)
