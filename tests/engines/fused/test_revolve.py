"""Gradients of whole solves in one call that keep a fixed number of states of each tile."""

import pytest
import torch
from selection import slow
from torch.autograd.graph import saved_tensors_hooks

import fastnode
from fastnode import extension
from fastnode.nn import MLPField, NeuralODE

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)


def field_of(dim, hidden, activation="silu", dtype=torch.float64):
    torch.manual_seed(1)
    return MLPField(dim, hidden, None, activation, "every").to(dtype)


def gradients(field, y0, ts, **options):
    y = y0.clone().requires_grad_()
    ys = fastnode.solve(field, y, ts, engine="fused", **options).ys
    weights = torch.linspace(0.5, 2, ys.numel(), dtype=ys.dtype).reshape(ys.shape)
    wanted = [y, *field.parameters(), *([ts] if ts.requires_grad else [])]
    return torch.autograd.grad((ys * weights).sum(), wanted)


@pytest.mark.parametrize("batch", [1, 3, 16, 45, slow(200)])
@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3", "adaptive_heun"])
def test_gradients_are_those_of_kept_states_bit_for_bit(method, batch):
    field = field_of(5, [17, 9])
    y0, ts = torch.randn(batch, 5).double(), torch.tensor([0.0, 0.31, 0.6, 2.0]).double()
    options = {"method": method, "rtol": 1e-7, "atol": 1e-7, "max_step": 0.1}
    expected = gradients(field, y0, ts, **options)
    for slots in (1, 2, 5, 1000):
        found = gradients(field, y0, ts, adjoint=fastnode.Revolve(slots), **options)
        assert all(map(torch.equal, found, expected)), slots


@pytest.mark.parametrize("batch", [3, 45])
@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
def test_given_steps_too(method, batch):
    field = field_of(5, [17, 9])
    y0, ts = torch.randn(batch, 5).double(), torch.tensor([0.0, 0.5, 2.0]).double()
    expected = gradients(field, y0, ts, method=method, steps=40)
    for slots in (1, 3, 100):
        options = {"method": method, "steps": 40, "adjoint": fastnode.Revolve(slots)}
        assert all(map(torch.equal, gradients(field, y0, ts, **options), expected))


def test_times_have_their_gradients():
    field, y0 = field_of(3, [16]), torch.randn(40, 3).double()
    ts = torch.tensor([0.2, 0.5, 1.4], dtype=torch.float64, requires_grad=True)
    options = {"rtol": 1e-5, "atol": 1e-5}
    expected = gradients(field, y0, ts, **options)
    found = gradients(field, y0, ts, adjoint=fastnode.Revolve(2), **options)
    assert all(map(torch.equal, found, expected))


def test_memory_does_not_grow_with_the_steps():
    field = field_of(4, [8])
    y0, sizes = torch.randn(64, 4).double(), []
    for end in (1.0, 50.0):
        held = []
        with saved_tensors_hooks(lambda x, held=held: held.append(x.nbytes) or x, lambda x: x):
            solution = fastnode.solve(
                field,
                y0,
                torch.tensor([0.0, end]).double(),
                adjoint=fastnode.Revolve(3),
                engine="fused",
            )
        assert solution.ys.requires_grad
        # Of each step three numbers: where it ends, its error and its stiffness.
        sizes.append(sum(held) - 3 * 8 * (solution.accepted + 1))
    assert sizes[0] == sizes[1]


def test_a_gradient_that_has_gradients():
    field, y0 = field_of(2, [4]), torch.randn(3, 2).double()
    ts = torch.tensor([0.0, 1.0]).double()
    found = []
    for adjoint in ("backprop", fastnode.Revolve(1)):
        y = y0.clone().requires_grad_()
        ys = fastnode.solve(field, y, ts, engine="fused", adjoint=adjoint).ys
        (first,) = torch.autograd.grad(ys.square().sum(), y, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [y, *field.parameters()]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_modules_take_it():
    field, x = field_of(3, [8], dtype=torch.float32), torch.randn(20, 3)
    both = []
    for adjoint in ("backprop", fastnode.Revolve(2)):
        field.zero_grad()
        NeuralODE(field, adjoint=adjoint)(x).square().mean().backward()
        both.append([p.grad for p in field.parameters()])
    assert all(map(torch.equal, *both))
