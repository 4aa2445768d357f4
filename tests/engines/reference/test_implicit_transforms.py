"""torch.func transforms over the methods that solve equations in each step."""

from __future__ import annotations

import pytest
import torch
from selection import slow_but

import fastnode
from fastnode.engines.methods import FIXED
from fastnode.tableaus import IMPLICIT

METHODS = [*IMPLICIT, "implicit_adams", "explicit_adams", "heun3"]
T = torch.linspace(0, 1, 5, dtype=torch.float64)


def solve(method):
    def end(y0):
        def field(t, y):
            return -torch.tanh(y) * torch.cos(t) - 3 * y * y.flip(-1)

        options = {"max_iters": 30} if method == "implicit_adams" else None
        return fastnode.odeint(field, y0, T, method=method, options=options, rtol=1e-12)[-1]

    return end


def start():
    return torch.tensor([[0.3, 0.1], [1.0, 0.2], [0.4, 0.5]], dtype=torch.float64)


def test_methods_that_solve_equations_are_here():
    assert {name for name in FIXED if "implicit" in name or name in IMPLICIT} <= set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_vmap_gives_what_each_sample_gives_alone(method):
    found = torch.func.vmap(solve(method))(start())
    wanted = torch.stack([solve(method)(y0) for y0 in start()])
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("transform", [torch.func.jacrev, torch.func.jacfwd])
@pytest.mark.parametrize(
    "method", slow_but(METHODS, "implicit_euler", "radauIIA3", "explicit_adams")
)
def test_jacobians_are_those_of_backward(method, transform):
    y0 = start()[1]
    wanted = torch.autograd.functional.jacobian(solve(method), y0)
    torch.testing.assert_close(transform(solve(method))(y0), wanted, rtol=1e-7, atol=1e-9)
    both = torch.func.vmap(transform(solve(method)))(start())
    torch.testing.assert_close(both[1], wanted, rtol=1e-7, atol=1e-9)


def test_forward_mode_differentiation():
    y0 = start()[0]
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(y0, torch.ones_like(y0))
        moved = torch.autograd.forward_ad.unpack_dual(solve("radauIIA5")(dual)).tangent
    wanted = torch.autograd.functional.jacobian(solve("radauIIA5"), y0).sum(dim=1)
    torch.testing.assert_close(moved, wanted)


def test_complex_states_and_parameters_are_followed():
    def loss(w):
        y0 = torch.tensor([1.0 + 0.5j], dtype=torch.complex128)
        return fastnode.odeint(lambda t, y: w * 1j * y - y.conj(), y0, T, method="gl4")[-1].abs()

    w = torch.tensor(0.7, dtype=torch.float64)
    wanted = torch.autograd.functional.jacobian(loss, w)
    torch.testing.assert_close(torch.func.jacrev(loss)(w), wanted)


def test_vmap_marks_only_unsolved_samples_with_nan():
    def end(y0):
        return fastnode.odeint(lambda t, y: y**2, y0, T[:2] * 8, method="implicit_euler")[-1]

    found = torch.func.vmap(end)(torch.tensor([0.1, 5.0], dtype=torch.float64))
    assert found[0].isfinite() and found[1].isnan()
