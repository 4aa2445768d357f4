"""compile=True of modules that solve: results, keys, copies and what is refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from selection import slow
from torch import nn

import fastnode
from fastnode import extension
from fastnode.nn import EncodedODE, NeuralODE, ODEBlock, SimulationFreeNODE

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)

B, D = 5, 4


class Gated(nn.Module):
    """No perceptron."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(D, D), nn.Linear(D, D)
        self.norm = nn.LayerNorm(D)

    def forward(self, t, z):
        t = torch.as_tensor(t, dtype=z.dtype).reshape(-1, 1)
        return torch.tanh(self.a(self.norm(z))) * torch.sigmoid(self.b(z) * t)


class Mixing(nn.Module):
    def forward(self, t, z):
        return z - z.mean(0)


def both(make, *args):
    torch.manual_seed(0)
    plain = make(*args)
    torch.manual_seed(0)
    return plain, make(*args, compile=True)


def same(plain, ours, x, close=1e-5):
    found = []
    for model in (plain, ours):
        y = model(x)
        y.square().sum().backward()
        found.append([y.detach(), *(p.grad for p in model.parameters())])
        model.zero_grad()
    for a, b in zip(*found, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=close, atol=close)


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_neural_ode_solves_natively(method, by_code):
    plain, ours = both(lambda **k: NeuralODE(Gated(), method, **k))
    x = torch.randn(B, D)
    same(plain, ours, x)
    assert len(by_code) == 1
    assert ours.nfe == plain.nfe
    ts = torch.tensor([0.0, 0.3, 1.0])
    torch.testing.assert_close(ours(x, ts), plain(x, ts), rtol=1e-5, atol=1e-5)
    assert len(by_code) == 2


def test_compile_keeps_the_keys_and_parameters():
    plain, ours = both(lambda **k: NeuralODE(Gated(), **k))
    x = torch.randn(B, D)
    before = ours(x)
    assert list(ours.state_dict()) == list(plain.state_dict())
    names = [name for name, _ in ours.named_parameters()]
    assert names == [name for name, _ in plain.named_parameters()]
    assert len(list(ours.modules())) == len(list(plain.modules()))
    with torch.no_grad():
        for p in ours.parameters():
            p.mul_(2)
    assert not torch.allclose(ours(x), before)
    ours.load_state_dict(plain.state_dict())
    torch.testing.assert_close(ours(x), before)


@pytest.mark.parametrize("copied", [slow(copy.deepcopy), lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_compiled_modules_solve_alone(copied, by_code):
    torch.manual_seed(0)
    models = [NeuralODE(Gated(), compile=True), ODEBlock(nn.Sequential(nn.Linear(D, D), nn.Tanh()),
              autonomous=True, compile=True)]  # fmt: skip
    x = torch.randn(B, D)
    for model in models:
        before = model(x)
        other = copied(model)
        with torch.no_grad():
            for p in other.parameters():
                p.mul_(2)
        assert not torch.allclose(other(x), before)
        torch.testing.assert_close(model(x), before)
    assert len(by_code) == 6


@pytest.mark.slow
def test_compiled_module_in_float64(by_code):
    torch.manual_seed(0)
    model = NeuralODE(Gated(), compile=True, rtol=1e-9, atol=1e-9)
    x = torch.randn(B, D)
    model(x)
    model.to(torch.float64)
    ours = model(x.double())
    wanted = fastnode.odeint(
        model.field, x.double(), torch.tensor([0.0, 1.0]), rtol=1e-9, atol=1e-9, method="dopri5"
    )[-1]
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-10)
    assert len(by_code) == 2


def test_another_field_in_its_place_is_solved(by_code):
    torch.manual_seed(0)
    model = NeuralODE(Gated(), compile=True)
    x = torch.randn(B, D)
    model(x)
    model.field = Gated()
    torch.testing.assert_close(model(x), NeuralODE(model.field)(x), rtol=1e-5, atol=1e-5)
    assert len(by_code) == 2


@pytest.mark.parametrize("method", ["dopri5", "radauIIA3"])
def test_compile_raises_what_cannot_be_compiled(method):
    x = torch.randn(B, D)
    for model in (NeuralODE(Mixing(), method, compile=True), ODEBlock(Mixing(), compile=True)):
        # Each time, not only at the first.
        for _ in range(2):
            with pytest.raises(fastnode.NotCompilable, match="depend on each other"):
                model(x)
    with pytest.raises(fastnode.NotCompilable, match="a state must be"):
        NeuralODE(Gated(), compile=True)(x[0])
    with pytest.raises(TypeError, match="compile must be"):
        NeuralODE(Gated(), compile=1)


@pytest.mark.parametrize("autonomous", [False, slow(True)])
def test_ode_block_solves_natively(autonomous, by_code):
    make = (lambda: nn.Sequential(nn.Linear(D, D), nn.SiLU())) if autonomous else Gated
    plain, ours = both(lambda **k: ODEBlock(make(), 3, "rk4", autonomous=autonomous, **k))
    assert list(plain.state_dict()) == list(ours.state_dict())
    same(plain, ours, torch.randn(B, D))
    assert len(by_code) == 1


@pytest.mark.parametrize("compile", [True, False])
def test_simulation_free_predictions_run_natively(compile, by_code):
    """The loss calls the module, at a time for each sample."""
    torch.manual_seed(0)
    field, x, y = Gated(), torch.randn(B, 3), torch.randn(B, 2)
    given = field if compile else fastnode.compile_field(field, torch.randn(B, D))
    nets = nn.Linear(3, D), nn.Linear(2, D), nn.Linear(D, 2)
    model = SimulationFreeNODE(*nets, given, compile=compile)
    model.loss(x, y).total.backward()
    assert field.a.weight.grad.abs().max() > 0
    plain = EncodedODE(nets[0], field, nets[2], method="euler", steps=1)
    for options in ({}, {"steps": 4}, {"method": "dopri5"}):
        with torch.no_grad():
            ours, wanted = model(x, **options), plain(x, **options)
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
    assert len(by_code) == 3


def test_regularised_compiled_module():
    plain, ours = both(
        lambda **k: NeuralODE(Gated(), "tsit5", regularizer=fastnode.regularize.RNODE(), **k)
    )
    x = torch.randn(B, D)
    for model in (ours, plain):
        # Its estimate of a norm is random.
        torch.manual_seed(0)
        model(x)
    torch.testing.assert_close(ours.regularization, plain.regularization, rtol=1e-4, atol=1e-5)


def test_solves_that_go_elsewhere_agree(by_code):
    """Under autocast and transforms code is not run, and is no reason to raise."""
    plain, ours = both(lambda **k: NeuralODE(Gated(), **k))
    x = torch.randn(B, D)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ours(x), plain(x))
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        assert torch.equal(transform(ours)(x), transform(plain)(x))
    assert not by_code
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), plain(x), rtol=1e-5, atol=1e-5)
    assert len(by_code) == 1


def test_tensors_put_in_place_of_parameters_are_solved(by_code):
    plain, ours = both(lambda **k: NeuralODE(Gated().double(), **k))
    x = torch.randn(B, D).double()
    held = {name: (2 * p).detach().requires_grad_() for name, p in ours.named_parameters()}
    found = []
    for model in (plain, ours):
        loss = torch.func.functional_call(model, held, (x,)).square().sum()
        found.append([loss, *torch.autograd.grad(loss, list(held.values()))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    assert len(by_code) == 1


def test_perceptrons_need_no_code(by_code):
    field = fastnode.nn.MLPField(D, (8,))
    model = NeuralODE(field, compile=True)
    assert model._solved(torch.randn(B, D)) is field
