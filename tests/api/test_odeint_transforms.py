"""torch.func, forward-mode differentiation and torch.compile around and inside solves."""

from __future__ import annotations

import pytest
import torch
from selection import slow, slow_but
from torch.func import jacfwd, jacrev, jvp, vmap

import fastnode

TIMES = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
METHODS = ["euler", "rk4", "dopri5", "tsit5", "bosh3"]


def wave(t, y):
    return torch.sin(3 * t) * y - torch.sin(2 * y)


def solve(y0, method="dopri5", field=wave, **options):
    return fastnode.odeint(field, y0, TIMES, method=method, rtol=1e-7, atol=1e-9, **options)


def batch(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", METHODS)
def test_vmap_over_initial_states_equals_a_loop(method):
    y0 = batch(5, 3)
    together = vmap(lambda y: solve(y, method))(y0)
    alone = torch.stack([solve(y, method) for y in y0])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)


def test_vmap_over_parameters_and_tuple_states():
    rates, y0 = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64), (batch(3), batch(2))

    def end(rate):
        return solve(y0, field=lambda t, y: (-rate * y[0], rate * torch.cos(t) * y[1]))[0][-1]

    expected = y0[0] * torch.exp(-rates)[:, None]
    torch.testing.assert_close(vmap(end)(rates), expected, rtol=1e-6, atol=1e-6)
    nested = vmap(vmap(lambda a, b: solve(a * b)[-1], (None, 0)), (0, None))
    assert nested(batch(2), batch(3, 4)).shape == (2, 3, 4)


@pytest.mark.parametrize("method", slow_but(METHODS, "rk4", "tsit5"))
def test_jacobians_in_both_modes_agree_with_backpropagation(method):
    y0 = batch(3)

    def end(y):
        return solve(y, method)[-1]

    expected = torch.autograd.functional.jacobian(end, y0)
    for mode in (jacrev, jacfwd):
        torch.testing.assert_close(mode(end)(y0), expected)


def test_transforms_nest():
    def total(y):
        return solve(y)[-1].sum()

    hessian = jacfwd(jacrev(total))(batch(3))
    torch.testing.assert_close(hessian, hessian.T, rtol=1e-5, atol=1e-7)
    jacobians = vmap(jacrev(lambda y: solve(y)[-1]))(batch(4, 3))
    alone = jacrev(lambda y: solve(y)[-1])(batch(4, 3)[2])
    # The steps of all are not those of one, and either has its own error.
    torch.testing.assert_close(jacobians[2], alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_forward_mode_goes_through_the_solve(method):
    y0, direction = batch(3), batch(2, 3)[1]
    _, tangent = jvp(lambda y: solve(y, method)[-1], (y0,), (direction,))
    jacobian = jacrev(lambda y: solve(y, method)[-1])(y0)
    torch.testing.assert_close(tangent, jacobian @ direction, rtol=1e-6, atol=1e-8)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(y0, direction)
        out = torch.autograd.forward_ad.unpack_dual(solve(dual, method)[-1])
    torch.testing.assert_close(out.tangent, tangent)


class Model(torch.nn.Module):
    def __init__(self, **arguments):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
        )
        self.arguments = arguments

    def field(self, t, y):
        return self.net(y) * torch.cos(t)

    def forward(self, y, t):
        return fastnode.odeint(self.field, torch.tanh(y), t, **self.arguments)[-1] * 2


@pytest.mark.parametrize(
    "method", slow_but(["euler", "midpoint", "heun2", "heun3", "rk4"], "midpoint")
)
def test_fixed_steps_compile_into_one_graph(method):
    model, y, t = Model(method=method), batch(4, 3).float(), torch.linspace(0, 1, 4)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(y, t), model(y, t), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(compiled(y, t + 1), model(y, t + 1), rtol=1e-5, atol=1e-6)
    compiled(y, t).sum().backward()
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(y, t).sum().backward()
    for grad, p in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(grad, p.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        {"method": "dopri5"},
        slow({"method": "dopri8", "options": {"max_step": 0.5}}),
        slow({"method": "rk4", "options": {"step_size": 0.1}}),
        slow({"method": "implicit_euler"}),
    ],
    ids=lambda a: a["method"],
)
def test_other_solves_break_the_graph_once(arguments):
    torch._dynamo.reset()
    model, y, t = Model(**arguments), batch(4, 3).float(), torch.linspace(0, 1, 4)
    explained = torch._dynamo.explain(model)(y, t)
    assert explained.graph_break_count == 1
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(compiled(y, t), model(y, t), rtol=1e-5, atol=1e-6)
    compiled(y, t).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_compiled_field_runs_inside_a_solve():
    model, y = Model(), batch(4, 3).float()
    compiled = torch.compile(model.net, backend="aot_eager")
    found = fastnode.odeint(lambda t, y: compiled(y), y, torch.tensor([0.0, 1.0]))
    expected = fastnode.odeint(lambda t, y: model.net(y), y, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(found, expected)


def test_solve_goes_through_vmap_and_breaks_a_graph_once():
    y0 = batch(5, 3)
    together = vmap(lambda y: fastnode.solve(wave, y, TIMES, rtol=1e-7).ys)(y0)
    alone = torch.stack([fastnode.solve(wave, y, TIMES, rtol=1e-7).ys for y in y0])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    torch._dynamo.reset()
    explained = torch._dynamo.explain(lambda y: fastnode.solve(wave, y * 2, TIMES).ys * 3)(y0)
    assert len(explained.break_reasons) == 1
