"""odeint_adjoint of fields that the fused engine solves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastnode
from fastnode import extension
from fastnode.nn import MLPField

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
        self.unused = nn.Parameter(torch.ones(2))
        self.calls = 0

    def forward(self, t, y):
        self.calls += 1
        return -self.net(y)


def solve_and_differentiate(func, **options):
    y0 = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2).requires_grad_()
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64, requires_grad=True)
    y = fastnode.odeint_adjoint(func, y0, t, rtol=1e-8, atol=1e-8, **options)
    wanted = [y0, t, *func.parameters()]
    return y, torch.autograd.grad(y.square().sum(), wanted, allow_unused=True)


def agrees(found, wanted, tolerance=1e-6):
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("named", [False, True])
def test_solution_and_gradients_are_the_engine_s(named):
    module = Counting().double()
    field = fastnode.fuse(module)
    wanted = solve_and_differentiate(module)
    module.calls = 0
    options = {"adjoint_params": field.parameters()} if named else {}
    found = solve_and_differentiate(field, **options)
    assert module.calls == 0
    torch.testing.assert_close(found[0], wanted[0])
    agrees(found[1], wanted[1])
    assert found[1][-1] is not None and not found[1][2].any()


def test_no_step_of_the_forward_solve_is_kept():
    field, y0 = MLPField(2, 8, 2, "tanh", "none"), torch.randn(64, 2)
    sizes = []
    for end in (1.0, 30.0):
        held = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda x, held=held: held.append(x.shape) or x, lambda x: x
        )
        with hooks:
            y = fastnode.odeint_adjoint(field, y0, torch.tensor([0.0, end]))
        assert y.grad_fn.name() == "MlpSolveBackward"
        sizes.append([shape for shape in held if shape[-1:] == (2,) and len(shape) > 2])
    assert sizes == [[], []]


@pytest.mark.parametrize(
    "options",
    [
        {"adjoint_rtol": 1e-9},
        {"adjoint_atol": 1e-9},
        {"adjoint_method": "dopri8"},
        {"adjoint_options": {"norm": "seminorm"}},
    ],
    ids=str,
)
def test_what_the_adjoint_is_asked_for_is_done(options):
    """And the forward solve is fused all the same."""
    module = Counting().double()
    field = fastnode.fuse(module)
    wanted = solve_and_differentiate(field)
    y0, t = torch.ones(3, 2, dtype=torch.float64), torch.tensor([0.0, 1.0])
    module.calls = 0
    y = fastnode.odeint_adjoint(field, y0, t, **options)
    assert module.calls == 0 and y.grad_fn.name() != "MlpSolveBackward"
    y.sum().backward()
    assert module.calls > 0
    agrees(solve_and_differentiate(field, **options)[1], wanted[1], 1e-5)


def test_parameters_that_are_to_have_no_gradient_have_none():
    field = MLPField(2, 8, 2, "tanh", "none")
    first, _, second, _ = field.parameters()
    y0, t = torch.randn(3, 2), torch.tensor([0.0, 1.0])
    y = fastnode.odeint_adjoint(field, y0, t, adjoint_params=(first,))
    y.sum().backward()
    assert first.grad is not None and second.grad is None


def test_second_derivatives_are_those_of_odeint():
    field = MLPField(2, 4, 2, "tanh", "none").double()
    y0 = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    results = []
    for solve in (fastnode.odeint, fastnode.odeint_adjoint):
        (first,) = torch.autograd.grad(solve(field, y0, t)[-1].sum(), y0, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), y0)[0])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("method", ["dopri5", "rk4", "explicit_adams"])
def test_every_method_is_solved(method):
    field = MLPField(2, 4, 2, "tanh", "every").double()
    y0, t = torch.randn(3, 2, dtype=torch.float64), torch.linspace(0, 1, 11).double()
    found = fastnode.odeint_adjoint(field, y0, t, method=method)
    torch.testing.assert_close(found, fastnode.odeint(field, y0, t, method=method))
