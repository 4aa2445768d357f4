"""Blocks of a few steps inside residual networks: what they compute, learn and leave alone."""

import copy
import pickle

import pytest
import torch
from torch import nn

import fastnode
from fastnode.nn import MLPField, ODEBlock


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def convolutions(channels=4):
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Conv2d(channels, channels, 3, padding=1),
    )


def network(adjoint, method="heun2", field=convolutions):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        ODEBlock(field(), 3, method, adjoint, autonomous=True),
        ODEBlock(field(), 2, method, adjoint, autonomous=True),
        nn.Flatten(),
        nn.Linear(4 * 36, 10),
    )


def train(adjoint, method):
    model = network(adjoint, method)
    x, labels = torch.randn(4, 16, 3, 8, 8), torch.arange(16) % 10
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    torch.manual_seed(1)
    for batch in x:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch), labels).backward()
        optimizer.step()
    return model


def test_one_step_of_euler_is_a_residual_block():
    net, z = nn.Linear(4, 4), torch.randn(3, 4)
    torch.testing.assert_close(ODEBlock(net, autonomous=True)(z), z + net(z))


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun2", "heun3", "rk4"])
def test_steps_are_those_of_odeint(method):
    field, z = MLPField(4, 8).double(), torch.randn(3, 4, dtype=torch.float64)
    block = ODEBlock(field, 5, method, t0=0.5, t1=-1.0)
    grid = torch.linspace(0.5, -1, 6, dtype=torch.float64)
    torch.testing.assert_close(block(z), fastnode.odeint(field, z, grid, method=method)[-1])


@pytest.mark.parametrize(("method", "stages"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
@pytest.mark.parametrize("adjoint", ["checkpoint", fastnode.Revolve(1)], ids=str)
def test_training_ends_at_the_parameters_of_backprop(adjoint, method, stages):
    wanted, found = train("backprop", method).state_dict(), train(adjoint, method).state_dict()
    assert wanted["2.field.1.num_batches_tracked"] == 4 * 3 * stages
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_evaluation_keeps_no_graph_and_no_state():
    block = network("checkpoint").eval()
    with torch.no_grad():
        assert not block(torch.randn(2, 3, 8, 8)).requires_grad


def test_under_autocast_the_state_keeps_its_precision():
    block, plain = network("checkpoint").eval(), network("backprop").eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        inner = block[2](block[:2](x))
        assert inner.dtype == torch.float32
        gradients = [
            torch.autograd.grad(each(x).square().sum(), list(each.parameters()))
            for each in (block, plain)
        ]
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)


def test_copies_and_pickles():
    block, z = ODEBlock(MLPField(4, 8), 2, "rk4", fastnode.Revolve(1)), torch.randn(3, 4)
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert torch.equal(other(z), block(z))
    assert list(block.state_dict()) == [f"field.{name}" for name in block.field.state_dict()]
    assert "steps=2, method=rk4" in repr(block)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"field": torch.tanh}, TypeError, "field must be a torch.nn.Module"),
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"steps": 1.5}, TypeError, "steps must be an integer"),
        ({"method": "dopri5"}, ValueError, "method must be one of euler"),
        ({"adjoint": "anode"}, ValueError, "adjoint must be one of"),
        ({"t1": 0.0}, ValueError, "t0 and t1 must differ"),
    ],
)
def test_bad_arguments_are_named(arguments, error, named):
    with pytest.raises(error, match=named):
        ODEBlock(**{"field": nn.Linear(2, 2), **arguments})
