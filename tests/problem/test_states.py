from __future__ import annotations

import math

import pytest
import torch
import torchdiffeq
from odeint_cases import TIMES, Net, grid, state

import fastnode

METHODS = ["euler", "midpoint", "rk4", "dopri5", "tsit5"]


def test_tuple_states_of_any_shapes_with_a_tolerance_each():
    def field(t, y):
        return y[0] * 0 + 1, -y[1], y[2].mean() - y[2]

    y0 = (torch.zeros(()), torch.ones(4, 1), state(0, 3, dtype=torch.float32))
    y = fastnode.odeint(field, y0, grid(0.0, 1.0), rtol=(1e-3, torch.full((4, 1), 1e-6), 1.0))
    assert [part.shape for part in y] == [(2,), (2, 4, 1), (2, 0, 3)]
    torch.testing.assert_close(y[1][1], torch.full((4, 1), -1.0).exp(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_states_keep_their_dtype(method, dtype):
    seen = set()

    def field(t, y):
        seen.add(t.dtype)
        return -y

    t = torch.linspace(0, 1, 11)
    y = fastnode.odeint(field, torch.ones(3, dtype=dtype), t, method=method, rtol=1e-2, atol=1e-2)
    assert y.dtype == dtype and seen == {dtype}
    assert (y[-1].float() - 0.3679).abs().max() < (0.03 if method == "euler" else 0.02)


def test_autocast_in_the_field_leaves_the_state_as_it_is():
    net = Net(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = fastnode.odeint(
            lambda t, y: net.inner(y) @ net.inner.weight, state(2, 4).float(), grid(0.0, 1.0),
            rtol=1e-2, atol=1e-2,
        )  # fmt: skip
    assert y.dtype == torch.float32


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_states_of_any_shape(method, shape):
    y = fastnode.odeint(lambda t, y: -y, state(*shape), grid(0.0, 0.5, 1.0), method=method)
    assert y.shape == (3, *shape)


def test_first_output_is_the_initial_state_and_a_copy():
    y0 = state(2)
    y = fastnode.odeint(lambda t, y: -y, y0, TIMES["one"])
    assert torch.equal(y, y0[None])
    y.zero_()
    assert y0.abs().min() > 0


def test_non_contiguous_state():
    y0 = state(4, 3).t()
    net = Net()
    y = fastnode.odeint(net, y0, TIMES["two"])
    torch.testing.assert_close(y, fastnode.odeint(net, y0.contiguous(), TIMES["two"]))


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32, torch.float64),
        (torch.float32, torch.int64),
        (torch.float32, torch.complex64),
        (torch.float64, torch.complex64),
    ],
    ids=str,
)
def test_tuple_states_are_promoted_as_by_torchdiffeq(method, dtypes):
    def field(t, y):
        return -y[0] * torch.ones_like(t), torch.zeros(3)

    y0 = tuple(torch.ones(n, dtype=dtype) for n, dtype in zip((2, 3), dtypes, strict=True))
    t = grid(0.0, 0.5, 1.0)
    ours, theirs = (
        library.odeint(field, y0, t, method=method, rtol=1e-5, atol=1e-5)
        for library in (fastnode, torchdiffeq)
    )
    wide = torch.promote_types(*dtypes)
    assert [part.dtype for part in ours] == [part.dtype for part in theirs] == [wide, wide]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_field_may_return_a_narrower_dtype_as_in_torchdiffeq():
    with pytest.warns(UserWarning, match="it is cast to torch.float64"):
        ours, theirs = (
            library.odeint(lambda t, y: -y.float(), state(2), grid(0.0, 1.0), rtol=1e-4, atol=1e-4)
            for library in (fastnode, torchdiffeq)
        )
    assert ours.dtype == theirs.dtype == torch.float64
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_extra_arguments_follow_the_state(method):
    def field(t, y, rate, shift):
        return rate * y + shift

    rate = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
    t = torch.linspace(0, 1, 201, dtype=torch.float64)
    y = fastnode.odeint(field, state(2).abs(), t, method=method, args=(rate, 0.0))
    torch.testing.assert_close(y[-1], math.exp(-0.5) * state(2).abs(), rtol=1e-2, atol=0)
    (gradient,) = torch.autograd.grad(y[-1].sum(), rate)
    assert gradient.item() == pytest.approx(math.exp(-0.5) * state(2).abs().sum().item(), rel=1e-2)
