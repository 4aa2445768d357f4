"""Flow matching in graphs of torch.compile: plain formulas, which a compiler fuses."""

from __future__ import annotations

import pytest
import torch
from compiled_graphs import compiled, own_ops
from selection import slow

from fastnode.flow import Concave, Convex, Linear, flow_loss, linear_flow_loss
from fastnode.nn import MLPField, SimulationFreeNODE


def inputs(dtype=torch.float32, shape=(6, 10)):
    generator = torch.Generator().manual_seed(0)
    z0, z1 = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return z0, z1, torch.rand(shape[0], generator=generator, dtype=wide)


def gradients(function, z0, z1, t, timed=False):
    leaves = [z0.clone().requires_grad_(), z1.clone().requires_grad_()]
    t = t.clone().requires_grad_(timed)
    loss = function(*leaves, t)
    return loss.detach(), *torch.autograd.grad(loss, [*leaves, *([t] if timed else [])])


@pytest.mark.parametrize(
    ("path", "dtype", "timed"),
    [
        (Linear(), torch.float32, False),
        slow(Concave(), torch.float64, True),
        (Convex(), torch.bfloat16, True),
    ],
    ids=str,
)
def test_a_compiled_flow_step_is_plain_formulas(path, dtype, timed):
    def step(z0, z1, t):
        zt, target = path.interpolate(z0, z1, t)
        return flow_loss(torch.tanh(zt), target)

    graph, names = compiled(step)
    found = gradients(graph, *inputs(dtype), timed)
    assert names and not own_ops(names)
    assert "aten.stack.default" not in names and "aten.cat.default" not in names
    exact = gradients(step, *(x.double() for x in inputs(dtype)), timed)
    eager = gradients(step, *inputs(dtype), timed)
    for got, ours, want in zip(found, eager, exact, strict=True):
        assert got.dtype == ours.dtype
        error, allowed = ((x.double() - want).abs().max() for x in (got, ours))
        assert error <= 2 * allowed + 1e-7 * want.abs().max()


@pytest.mark.parametrize("path", [Linear(), Concave()], ids=str)
def test_compiled_flow_step_has_few_guards(path):
    def step(z0, z1, t):
        zt, target = path.interpolate(z0, z1, t)
        return flow_loss(torch.tanh(zt), target)

    # Each is compared before every call, with a cache that the step before has emptied.
    torch.compiler.reset()
    assert len(torch._dynamo.explain(step)(*inputs()).out_guards) < 50


def test_end_points_may_change_after_compiled_interpolation():
    def step(z0, z1, t, change):
        zt, target = Linear().interpolate(z0, z1, t)
        if change:
            z0.mul_(3)
            z1.zero_()
        return flow_loss(zt * 2, target)

    torch.compiler.reset()
    graph = torch.compile(step, fullgraph=True, backend="aot_eager")
    z0, z1, t = inputs()
    expected = step(z0, z1, t, False)
    torch.testing.assert_close(graph(z0.clone(), z1.clone(), t, True), expected)


def test_compiled_linear_loss_and_reductions_have_no_ops():
    weight = torch.randn(10, 10)

    def step(z0, z1, t):
        zt, target = Linear().interpolate(z0, z1, t)
        rows = flow_loss(zt, target, "none").sum()
        return linear_flow_loss(zt, weight, None, target) + flow_loss(zt, target, "sum") + rows

    graph, names = compiled(step)
    found = gradients(graph, *inputs())
    assert not own_ops(names)
    for got, want in zip(found, gradients(step, *inputs()), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inner", ["interpolant", "loss"])
def test_a_target_crosses_the_border_of_a_compiled_graph(inner):
    path = Convex()

    def first(z0, z1, t):
        return path.interpolate(z0, z1, t)

    def second(zt, target):
        return flow_loss(torch.tanh(zt), target)

    # Eager graphs too: it is about autograd, not about speed.
    torch.compiler.reset()
    compile_it = torch.compile(backend="aot_eager")
    parts = (compile_it(first), second) if inner == "interpolant" else (first, compile_it(second))

    def step(z0, z1, t):
        return parts[1](*parts[0](z0, z1, t))

    plain = gradients(lambda z0, z1, t: second(*first(z0, z1, t)), *inputs(), True)
    for got, want in zip(gradients(step, *inputs(), True), plain, strict=True):
        torch.testing.assert_close(got, want)


def test_compiled_simulation_free_loss_has_no_ops():
    torch.manual_seed(0)
    nets = [torch.nn.Linear(n, m) for n, m in ((5, 8), (3, 8), (8, 3))]
    model = SimulationFreeNODE(*nets, MLPField(8, 16), num_classes=3, zero_probability=1.0)
    model.label_noise = 0.0
    graph, names = compiled(model.loss)
    x, y = torch.randn(8, 5), torch.arange(8) % 3
    found, expected = graph(x, y).total, model.loss(x, y).total
    torch.testing.assert_close(found, expected)
    params = list(model.parameters())
    for got, want in zip(
        torch.autograd.grad(found, params), torch.autograd.grad(expected, params), strict=True
    ):
        torch.testing.assert_close(got, want)
    assert not own_ops(names)
