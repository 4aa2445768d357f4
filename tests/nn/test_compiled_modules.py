"""Modules with fixed steps as one graph of torch.compile, adaptive ones with one break."""

from __future__ import annotations

import pytest
import torch
from compiled_graphs import compiled, own_ops
from fixed_step_modules import CASES, build, field
from selection import slow
from torch import nn

import fastnode
from fastnode.nn import NeuralODE, ODEBlock


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_modules_of_fixed_steps_are_one_graph(name, kind):
    model, x = build(name, kind)
    graph, _ = compiled(model)
    found = []
    for each in (model, graph):
        z = x.clone().requires_grad_()
        out = each(z)
        params = [p for n, p in model.named_parameters() if "label_encoder" not in n]
        found.append((out.detach(), *torch.autograd.grad(out.square().sum(), [z, *params])))
    for got, want in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(got, want)


def test_compiled_forward_counts_evaluations():
    cases = ("NeuralODE", "MLPField", 4), ("NeuralODE, step_size", "plain", 8)
    for name, kind, nfe in cases:
        model, x = build(name, kind)
        model(x)
        assert model.nfe == nfe
        model.nfe = 0
        compiled(model)[0](x)
        assert model.nfe == nfe


def test_a_compiled_field_is_plain_formulas_in_a_graph():
    torch.manual_seed(0)
    x = torch.randn(3, 4)
    model = NeuralODE(fastnode.compile_field(field("plain"), x), "rk4")
    graph, names = compiled(model)
    found = graph(x)
    assert names and not own_ops(names)
    torch.testing.assert_close(found, NeuralODE(model.field.module, "rk4")(x))
    program = torch.export.export(model.eval(), (x,)).module()
    torch.testing.assert_close(program(x), found)


@pytest.mark.slow
def test_ode_block_without_time_and_a_trajectory_are_one_graph():
    torch.manual_seed(0)
    block = ODEBlock(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), steps=2, autonomous=True)
    x = torch.randn(3, 4)
    graph, names = compiled(block)
    torch.testing.assert_close(graph(x), block(x))
    assert not own_ops(names)
    model, x = build("NeuralODE", "plain")
    ts = torch.tensor([0.0, 0.2, 1.0])
    graph, _ = compiled(model)
    torch.testing.assert_close(graph(x, ts), model(x, ts))


@pytest.mark.slow
def test_compiled_ode_block_recomputes_its_steps():
    block, x = build("ODEBlock", "plain")
    x.requires_grad_()
    counts = {}
    for adjoint in ("backprop", "checkpoint"):
        block.adjoint = adjoint
        graph, names = compiled(block)
        graph(x).sum().backward()
        counts[adjoint] = names.count("aten.tanh.default")
    assert counts["backprop"] == 12 < counts["checkpoint"]


@pytest.mark.slow
def test_batch_norm_in_a_compiled_block_counts_once():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh())
    x, kept = torch.randn(8, 4), []
    start = {k: v.clone() for k, v in net.state_dict().items()}
    for compile_it in (False, True):
        net.load_state_dict(start)
        block = ODEBlock(net, steps=2, autonomous=True)
        torch.compiler.reset()
        run = torch.compile(block, fullgraph=True, backend="aot_eager") if compile_it else block
        run(x.clone().requires_grad_()).sum().backward()
        kept.append({k: v.clone() for k, v in net.state_dict().items()})
    for name, value in kept[0].items():
        torch.testing.assert_close(kept[1][name], value)


@pytest.mark.parametrize(
    ("build_it", "kind"),
    [
        (lambda f: NeuralODE(f), "MLPField"),
        slow(lambda f: NeuralODE(f, adjoint="checkpoint"), "plain"),
        slow(lambda f: NeuralODE(f, "implicit_euler"), "MLPField"),
        slow(lambda f: NeuralODE(f, regularizer=fastnode.regularize.Local()), "plain"),
    ],
    ids=["dopri5", "checkpoint", "implicit", "regularised"],
)
def test_modules_of_adaptive_steps_break_the_graph_once(build_it, kind):
    torch.manual_seed(0)
    torch.compiler.reset()
    model = nn.Sequential(nn.Linear(4, 4), build_it(field(kind)), nn.Linear(4, 2))
    x = torch.randn(3, 4)
    assert torch._dynamo.explain(model)(x).graph_break_count <= 1
    model.eval()
    graph = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(graph(x), model(x))
    assert model[1].nfe > 0
