"""Compiled fields: gradients of gradients, Jacobian-vector products and transforms."""

from __future__ import annotations

import gc

import pytest
import torch
from field_zoo import Residual, mlp
from selection import slow
from torch import nn

import fastnode
from fastnode import extension

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)

TIMES = torch.tensor([0.0, 0.3, 0.5], dtype=torch.float64)


class Turned(nn.Module):
    """It depends on the time and an argument, and is no perceptron."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, t, y, rate):
        return torch.tanh(self.a(y)) * torch.sigmoid(self.b(y)) + rate * torch.sin(3 * t)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp(2, 4, 2)

    def forward(self, t, state):
        a, b = state
        return torch.tanh(self.net(a)) * torch.cos(t), -b * (1 + a.square().sum(1))


def made():
    torch.manual_seed(0)
    module = Turned().double()
    y0, rate = torch.randn(2, 3).double(), torch.tensor(0.4).double()
    return module, y0, rate, fastnode.compile_field(module, y0, args=(rate,))


OPTIONS = [
    {"method": "dopri5"},
    {"method": "rk4", "steps": 4},
    {"method": "tsit5", "adjoint": "checkpoint"},
    {"method": "bosh3", "adjoint": fastnode.Revolve(2)},
    slow({"method": "dopri5", "per_sample": True}),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_of_gradients_are_the_modules(options):
    module, y0, rate, compiled = made()
    found = []
    for func in (compiled, module):
        inputs = [x.clone().requires_grad_() for x in (y0, rate)]
        engine = "auto" if func is compiled or "per_sample" in options else "native"
        if func is module and "per_sample" in options:
            func = lambda t, y, rate: module(t[:, None], y, rate)  # noqa: E731
        ys = fastnode.solve(
            func,
            inputs[0],
            TIMES,
            args=(inputs[1],),
            engine=engine,
            rtol=1e-7,
            atol=1e-9,
            **options,
        ).ys
        sources = [*inputs, *module.parameters()]
        first = torch.autograd.grad(ys.square().sum(), sources, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), sources)
        found.append([*first, *second])
    for a, b in zip(*found, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.slow
def test_second_gradients_by_finite_differences():
    module, y0, rate, compiled = made()
    t = TIMES.clone()

    def solve(y0, rate, t, *_):
        options = {"rtol": 1e-11, "atol": 1e-12, "method": "dopri5"}
        return fastnode.odeint(compiled, y0, t, args=(rate,), **options)[-1]

    inputs = [x.requires_grad_() for x in (y0, rate, t)]
    parameters = list(module.parameters())
    assert torch.autograd.gradgradcheck(solve, (*inputs, *parameters), atol=1e-4, rtol=1e-3)


def test_second_gradients_of_tuples_and_functions():
    torch.manual_seed(0)
    module = Pair().double()
    state = torch.randn(4, 2).double().requires_grad_(), torch.randn(4).double()
    compiled = fastnode.compile_field(module, state)
    by_function = fastnode.compile_field(lambda t, y: module(t, y), state)
    found = []
    for func in (compiled, by_function, module):
        ys = fastnode.odeint(func, state, TIMES, method="dopri5")
        sources = [state[0], *module.parameters()]
        loss = ys[0].square().sum() + ys[1].sin().sum()
        first = torch.autograd.grad(loss, sources, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), sources)
        found.append([*first, *second])
    for a, b, c in zip(*found, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(b, c, rtol=1e-9, atol=1e-10)


@pytest.mark.slow
def test_second_gradients_of_tensors_put_in_place_of_parameters():
    """As in meta-learning: the solve is of other tensors than the module holds afterwards."""
    torch.manual_seed(0)
    module, y0 = Residual(3, 1).double(), torch.randn(4, 3).double()
    compiled = fastnode.compile_field(module, y0)
    found = []
    for func, prefix in ((compiled, "field.module."), (module, "field.")):

        class Loss(nn.Module):
            def __init__(self, field):
                super().__init__()
                self.field = field

            def forward(self):
                return fastnode.odeint(self.field, y0, TIMES, method="dopri5")[-1].square().sum()

        held = {n: x.detach().clone().requires_grad_() for n, x in module.named_parameters()}
        first_loss = torch.func.functional_call(
            Loss(func), {prefix + n: x for n, x in held.items()}, ()
        )
        first = torch.autograd.grad(first_loss, list(held.values()), create_graph=True)
        moved = {prefix + n: x - 0.1 * g for (n, x), g in zip(held.items(), first, strict=True)}
        loss = torch.func.functional_call(Loss(func), moved, ())
        found.append(torch.autograd.grad(loss, list(held.values())))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_changed_and_lost_modules_raise():
    def solved(change):
        module = nn.Sequential(nn.Dropout(0.0)).eval()

        class Field(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner, self.factor = module, 2.0

            def forward(self, t, y):
                return torch.sin(self.inner(y)) * self.factor

        field = Field()
        y0 = torch.randn(3, 2).requires_grad_()
        y1 = fastnode.odeint(fastnode.compile_field(field, y0), y0, TIMES.float())[-1]
        if change:
            field.factor = 3.0
        else:
            del field
        gc.collect()
        return y1, y0

    for change in (True, False):
        y1, y0 = solved(change)
        with pytest.raises(RuntimeError, match="has changed or is gone"):
            torch.autograd.grad(y1.sum(), y0, create_graph=True)


def test_forward_mode_goes_by_other_engines():
    module, y0, rate, compiled = made()

    def solve(func):
        options = {"method": "dopri5", "rtol": 1e-9, "atol": 1e-9, "args": (rate,)}
        return lambda y0: fastnode.odeint(func, y0, TIMES, **options)[-1]

    tangent = torch.randn_like(y0)
    ours = torch.func.jvp(solve(compiled), (y0,), (tangent,))
    wanted = torch.func.jvp(solve(module), (y0,), (tangent,))
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    by_rows = torch.autograd.functional.jacobian(solve(compiled), y0)
    for transform in (torch.func.jacfwd, torch.func.jacrev):
        torch.testing.assert_close(transform(solve(compiled))(y0), by_rows, rtol=0, atol=1e-10)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(y0, tangent)
        found = torch.autograd.forward_ad.unpack_dual(solve(compiled)(dual)).tangent
    torch.testing.assert_close(found, wanted[1], rtol=0, atol=1e-10)
    hessian = torch.func.hessian(lambda y0: solve(compiled)(y0).square().sum())(y0)
    wanted_hessian = torch.func.hessian(lambda y0: solve(module)(y0).square().sum())(y0)
    torch.testing.assert_close(hessian, wanted_hessian, rtol=0, atol=1e-9)


def test_forward_mode_of_parameters():
    module, y0, rate, compiled = made()
    names = [name for name, _ in module.named_parameters()]
    held = tuple(x.detach() for x in module.parameters())
    tangents = tuple(torch.randn_like(x) for x in held)

    class Solve(nn.Module):
        def __init__(self, field):
            super().__init__()
            self.field = field

        def forward(self):
            return fastnode.odeint(self.field, y0, TIMES, args=(rate,), method="dopri5")[-1]

    def jvp(field, prefix):
        def call(*held):
            named = {prefix + name: x for name, x in zip(names, held, strict=True)}
            return torch.func.functional_call(Solve(field), named, ())

        return torch.func.jvp(call, held, tangents)[1]

    ours, wanted = jvp(compiled, "field.module."), jvp(module, "field.")
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-10)
