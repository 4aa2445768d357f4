"""Modules that solve an ODE: what they compute, how they count, how they train."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import fastnode
from fastnode import extension
from fastnode.nn import EncodedODE, MLPField, NeuralODE
from fastnode.nn.node import _times


class Decay(nn.Module):
    """dz/dt = -rate z."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, t, z):
        return -self.rate * z


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def encoded(**options):
    return EncodedODE(nn.Linear(3, 4), MLPField(4, 6), nn.Linear(4, 2), **options)


def test_solution_and_gradient_of_a_linear_equation():
    ode = NeuralODE(Decay(), rtol=1e-9, atol=1e-9, t1=2.0)
    z0 = torch.ones(3, dtype=torch.float64, requires_grad=True)
    z1 = ode(z0)
    torch.testing.assert_close(z1, torch.full_like(z1, math.exp(-1.4)))
    z1.sum().backward()
    torch.testing.assert_close(z0.grad, z1.detach())
    torch.testing.assert_close(ode.field.rate.grad, -2 * z1.sum().detach())


def test_backward_in_time_returns_to_the_start():
    there, back = NeuralODE(Decay(), rtol=1e-9, atol=1e-9), NeuralODE(Decay(), t0=1.0, t1=0.0)
    back.rtol = back.atol = 1e-9
    z0 = torch.randn(4, dtype=torch.float64)
    torch.testing.assert_close(back(there(z0)), z0)


def test_times_give_a_trajectory():
    ode = NeuralODE(Decay(), rtol=1e-9, atol=1e-9)
    ts = torch.linspace(0, 3, 5, dtype=torch.float64)
    trajectory = ode(torch.ones(2, dtype=torch.float64), ts)
    torch.testing.assert_close(trajectory[:, 0], torch.exp(-0.7 * ts))


def test_options_reach_the_solver():
    ode = NeuralODE(MLPField(4, 6), method="rk4", options={"step_size": 0.25})
    ode(torch.randn(2, 4))
    assert ode.nfe == 16


def test_node_in_a_sequential_classifier_learns():
    model = nn.Sequential(nn.Linear(2, 4), NeuralODE(MLPField(4, 16)), nn.Linear(4, 2))
    x = torch.randn(64, 2)
    y = (x.norm(dim=1) > 1).long()
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(25):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    assert loss < 0.35
    assert model[1].nfe >= 6


@pytest.mark.parametrize(("method", "each"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_fixed_steps_cost_their_stages(method, each, steps):
    model = encoded()
    assert model(torch.randn(5, 3), method=method, steps=steps).shape == (5, 2)
    assert model.nfe == each * steps


def test_one_euler_step_adds_the_field_once():
    model, x = encoded(method="euler"), torch.randn(5, 3)
    z0 = model.encoder(x)
    expected = model.decoder(z0 + model.field(torch.tensor(0.0), z0))
    torch.testing.assert_close(model(x), expected)


def test_many_steps_approach_the_adaptive_solution():
    model, x = encoded(rtol=1e-6, atol=1e-6), torch.randn(5, 3)
    torch.testing.assert_close(model(x, method="rk4", steps=20), model(x), rtol=1e-4, atol=1e-4)
    loose = model(x, rtol=1e-2, atol=1e-2) is not None and model.nfe
    model(x)
    assert model.nfe > loose > 0


def test_copies_keep_the_count_as_a_number():
    model, x = encoded(), torch.randn(5, 3)
    expected = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.nfe == model.nfe and isinstance(other.nfe, int)
        assert torch.equal(other(x), expected)
    assert not any("nfe" in key for key in model.state_dict())


def test_autocast_solves_in_float32():
    model, x = encoded(rtol=1e-5, atol=1e-5), torch.randn(5, 3)
    expected = model(x)
    seen = []
    model.decoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = model(x, method="rk4", steps=10)
        assert NeuralODE(model.field)(model.encoder(x)).dtype == torch.float32
    assert seen == [torch.float32]
    torch.testing.assert_close(value.float(), expected, rtol=0.05, atol=0.05)


def test_double_precision_after_a_move():
    model = encoded().double()
    assert model(torch.randn(5, 3, dtype=torch.float64)).dtype == torch.float64


def test_too_many_steps_are_an_error():
    model = encoded()
    with torch.no_grad():
        for layer in model.field.layers:
            layer.weight.mul_(30)
    with pytest.raises(fastnode.SolverError):
        model(torch.randn(5, 3), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: NeuralODE(lambda t, z: z), TypeError, "field must be a torch.nn.Module"),
        (lambda: NeuralODE(Decay(), "dopri"), ValueError, "method must be one of .* got 'dopri'"),
        (lambda: NeuralODE(Decay(), t0=1.0), ValueError, "t0 and t1 must differ, got 1.0"),
        (lambda: EncodedODE(1, Decay(), nn.Identity()), TypeError, "encoder must be .* got int"),
        (lambda: encoded(steps=0), ValueError, "steps must be at least 1, got 0"),
        (lambda: encoded(method="adams"), ValueError, "method must be one of .* got 'adams'"),
        (lambda: encoded()(torch.zeros(2, 3), steps=1.5), TypeError, "steps must be an integer"),
        (lambda: encoded()(torch.zeros(2, 3), method="x"), ValueError, "method must be one of"),
    ],
)
def test_bad_arguments_are_named(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)
@pytest.mark.parametrize("kind", ["node", "encoded"])
def test_perceptrons_are_solved_by_the_fused_engine(kind, monkeypatch):
    field = MLPField(4, 6)
    node = NeuralODE(field) if kind == "node" else EncodedODE(nn.Identity(), field, nn.Identity())
    z = torch.randn(3, 4)
    with monkeypatch.context() as patch:
        patch.setattr(MLPField, "perceptron", lambda self: None)
        wanted, nfe = node(z), node.nfe
    monkeypatch.setattr(MLPField, "forward", None)
    torch.testing.assert_close(node(z), wanted)
    assert node.nfe == nfe > 0


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 64])
def test_equal_steps_end_where_linspace_says(steps):
    for t0, t1 in ((0.0, 1.0), (0.3, -1.7)):
        expected = torch.linspace(t0, t1, steps + 1, dtype=torch.float64)
        torch.testing.assert_close(
            torch.tensor(_times(t0, t1, steps), dtype=torch.float64), expected, rtol=0, atol=2e-16
        )
