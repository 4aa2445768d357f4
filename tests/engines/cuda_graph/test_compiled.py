"""Compiled fields on a GPU, whose CUDA calls are replaced: engine "graph" where it can run them."""

from __future__ import annotations

import pytest
import torch
from fake_cuda_graph import faked
from torch import nn

import fastnode
from fastnode import extension
from fastnode.engines import select
from fastnode.fields.compile import CompiledField

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)

TS = torch.tensor([0.0, 0.4, 1.0])


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, t, y):
        return torch.tanh(self.layer(y)) * torch.cos(t)


class Noting(Field):
    """Python that a CUDA graph would not repeat."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, t, y):
        self.calls += 1
        return super().forward(t, y)


class OnGpu(CompiledField):
    """As if its states were on a GPU: no code."""

    def native_field(self, *asked):
        return None


@pytest.fixture
def runtimes(monkeypatch):
    def compiled(problem):
        return getattr(type(problem.func), "perceptron", problem) is None

    monkeypatch.setattr(select, "_is_compiled_on_gpu", compiled)
    with faked() as made:
        yield made


def made(kind=Field):
    torch.manual_seed(0)
    return OnGpu(kind()), torch.randn(4, 3)


def launches(runtimes):
    return sum(each.launches for each in runtimes)


def test_compiled_fields_run_as_a_graph(runtimes):
    compiled, y0 = made()
    module = compiled.module
    with torch.no_grad():
        ours = fastnode.odeint(compiled, y0, TS, method="dopri5")
        assert launches(runtimes) == 1
        assert torch.equal(ours, fastnode.odeint(module, y0, TS, method="dopri5"))
        solution = fastnode.solve(compiled, y0, TS)
        assert launches(runtimes) == 2
        plain = fastnode.solve(module, y0, TS)
        assert torch.equal(solution.ys, plain.ys) and solution.nfe == plain.nfe
        state = (y0, y0[:, 0])
        pair = OnGpu(Pair(module))
        for a, b in zip(*(fastnode.odeint(f, state, TS) for f in (pair, pair.module)), strict=True):
            assert torch.equal(a, b)
        assert launches(runtimes) == 3
    # A forward solve without a graph of autograd.
    fastnode.odeint_adjoint(compiled, y0, TS, method="dopri5")[-1].sum().backward()
    assert launches(runtimes) == 4 and module.layer.weight.grad.abs().max() > 0


class Pair(nn.Module):
    def __init__(self, field):
        super().__init__()
        self.field = field

    def forward(self, t, state):
        return self.field(t, state[0]), -state[1]


def test_neural_odes_count_the_evaluations_of_a_graph(runtimes):
    compiled, y0 = made()
    model, plain = (fastnode.nn.NeuralODE(f, "tsit5") for f in (compiled, compiled.module))
    with torch.no_grad():
        assert torch.equal(model(y0), plain(y0))
    assert launches(runtimes) == 1 and model.nfe == plain.nfe


@pytest.mark.parametrize(
    "options",
    [
        {"method": "rk4"},
        {"save": "dense"},
        {"adjoint": "reversible"},
        {"events": lambda t, y: y.sum() + 100},
        {"on_step": lambda step: None},
        {"rtol": torch.full((3,), 1e-3)},
        {"per_sample": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_solves_that_a_graph_cannot_run_go_natively(options, runtimes):
    compiled, y0 = made()
    module = compiled.module
    if "per_sample" in options:
        compiled = OnGpu(Rows(module))
    with torch.no_grad():
        ours = fastnode.solve(compiled, y0, TS, **options)
        assert torch.equal(ours.ys, fastnode.solve(compiled.module, y0, TS, **options).ys)
    assert launches(runtimes) == 0


class Rows(Pair):
    def forward(self, t, y):
        return self.field(t[:, None], y)


def test_solves_with_gradients_go_natively(runtimes):
    compiled, y0 = made()
    for adjoint in ("backprop", "checkpoint"):
        found = []
        for func in (compiled, compiled.module):
            ys = fastnode.solve(func, y0, TS, adjoint=adjoint).ys
            found.append(torch.autograd.grad(ys.square().sum(), compiled.module.parameters()))
        for a, b in zip(*found, strict=True):
            assert torch.equal(a, b)
    assert launches(runtimes) == 0
    fastnode.solve(compiled, y0, TS, adjoint="none")
    assert launches(runtimes) == 1


def test_fields_that_cannot_be_captured_go_natively(runtimes):
    compiled, y0 = made(Noting)
    with torch.no_grad():
        ours = fastnode.odeint(compiled, y0, TS)
        assert launches(runtimes) == 0
        assert torch.equal(ours, fastnode.odeint(compiled.module, y0, TS))
        with pytest.raises(ValueError, match="cannot capture"):
            fastnode.solve(compiled, y0, TS, engine="graph")
        with pytest.raises(ValueError, match="engine 'fused' cannot run"):
            fastnode.solve(compiled, y0, TS, engine="fused")


def test_what_cannot_be_captured_is_not_tried_again(runtimes):
    torch.manual_seed(0)

    class Drawing(Field):
        def forward(self, t, y):
            return super().forward(t, y) + 0 * torch.rand(())

    compiled, y0 = OnGpu(Drawing()), torch.randn(4, 3)
    with torch.no_grad():
        fastnode.odeint(compiled, y0, TS)
        tried = len(runtimes)
        fastnode.odeint(compiled, y0, TS)
        assert tried == len(runtimes) == 1
        # It is another field now.
        compiled.module.layer = nn.Linear(3, 3)
        fastnode.odeint(compiled, y0, TS)
        assert len(runtimes) == 2


def test_named_engines_are_not_replaced(runtimes):
    compiled, y0 = made()
    with torch.no_grad():
        for engine in ("native", "reference"):
            fastnode.solve(compiled, y0, TS, engine=engine)
    assert launches(runtimes) == 0
