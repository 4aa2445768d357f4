"""Fields that return another precision than the state's, which torchdiffeq casts."""

from __future__ import annotations

import warnings

import pytest
import torch
import torchdiffeq

import fastnode
from fastnode import extension

T = torch.tensor([0.0, 0.5, 1.0])
ENGINES = [
    pytest.param("native", marks=pytest.mark.skipif(not extension.AVAILABLE, reason="no C++")),
    "reference",
]


class Other(torch.nn.Module):
    """-w y in a precision of its own."""

    def __init__(self, dtype):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones((), dtype=dtype))

    def forward(self, t, y):
        return -self.w * y.to(self.w.dtype)


def recorded(function):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function()
    return result, [str(w.message) for w in caught if "it is cast to" in str(w.message)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", ["dopri5", "rk4", "implicit_adams", "implicit_euler"])
@pytest.mark.parametrize(
    ("state", "field"), [(torch.float32, torch.float64), (torch.float64, torch.float32)], ids=str
)
def test_odeint_casts_with_one_warning(state, field, method, engine):
    func, y0, known = Other(field), torch.ones(3, dtype=state), {"rtol": 1e-4, "atol": 1e-4}
    if engine == "native" and method.startswith("implicit"):
        engine = "auto"
    ours, warned = recorded(
        lambda: fastnode.odeint(func, y0, T, method=method, engine=engine, **known)
    )
    assert ours.dtype == state
    assert warned == [
        f"func returns {field} for a state of {state}: it is cast to {state}; one precision for "
        "both saves that"
    ]
    if method == "implicit_euler":
        theirs = torch.tensor([1.0, 1 / 1.5, 1 / 1.5**2], dtype=state)[:, None].expand(3, 3)
    else:
        theirs = torchdiffeq.odeint(func, y0, T, method=method, **known)
    torch.testing.assert_close(ours, theirs.to(state), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("adjoint", ["backprop", "checkpoint", "continuous", "reversible"])
def test_solve_casts_with_one_warning_backward_too(adjoint):
    func, y0 = Other(torch.float64), torch.ones(3, requires_grad=True)

    def gradients():
        ys = fastnode.solve(func, y0, T, rtol=1e-5, atol=1e-5, adjoint=adjoint).ys
        return torch.autograd.grad(ys[-1].sum(), (y0, func.w))

    (by_y0, by_w), warned = recorded(gradients)
    assert len(warned) == 1
    end = torch.exp(torch.tensor(-1.0))
    torch.testing.assert_close(by_y0, end.expand(3), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(by_w, -3 * end.double(), rtol=1e-3, atol=1e-3)


def test_odeint_adjoint_casts_with_one_warning():
    func, y0 = Other(torch.float64), torch.ones(3, requires_grad=True)
    (gradient,), warned = recorded(
        lambda: torch.autograd.grad(fastnode.odeint_adjoint(func, y0, T)[-1].sum(), func.w)
    )
    assert len(warned) == 1
    torch.testing.assert_close(gradient.item(), -3 * 0.36788, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("adjoint", ["none", "backprop", "checkpoint"])
def test_per_sample_solves_cast_with_one_warning(adjoint):
    func, y0 = Other(torch.float64), torch.ones(3, 2, requires_grad=True)

    def run():
        ys = fastnode.solve(func, y0, T, per_sample=True, adjoint=adjoint).ys
        if adjoint != "none":
            ys.sum().backward()
        return ys

    ys, warned = recorded(run)
    assert len(warned) == 1 and ys.dtype == torch.float32


def test_tuples_complex_numbers_and_autocast():
    y0 = (torch.ones(2), torch.ones(3))
    result, warned = recorded(lambda: fastnode.odeint(lambda t, y: (-y[0].double(), -y[1]), y0, T))
    assert [x.dtype for x in result] == [torch.float32] * 2
    assert len(warned) == 1 and warned[0].startswith("func, element 0,")
    # A real derivative of a complex state, and whole numbers, lose nothing.
    for func in (lambda t, y: -y.real, lambda t, y: torch.ones(2, dtype=torch.int64)):
        assert not recorded(lambda f=func: fastnode.odeint(f, torch.ones(2) * 1j, T))[1]
    with torch.autocast("cpu", torch.bfloat16):
        field = lambda t, y: -y.bfloat16()  # noqa: E731
        assert not recorded(lambda: fastnode.odeint(field, torch.ones(2), T, method="rk4"))[1]
    with pytest.raises(TypeError, match="func must return the state's dtype torch.float32, got"):
        fastnode.odeint(lambda t, y: y * 1j, torch.ones(2), T)
