from __future__ import annotations

import math

import pytest
import torch

import fastnode
from fastnode.extension import AVAILABLE

ENGINES = ["reference", "native"] if AVAILABLE else ["reference"]


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.skipif(not AVAILABLE, reason="without the extension")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_both_engines_take_the_same_steps(dtype):
    y0 = torch.randn(40, 3, 70, generator=torch.Generator().manual_seed(0)).to(dtype)
    rate = torch.linspace(0.1, 20, 40, dtype=dtype)
    ts = torch.stack([torch.zeros(40), torch.linspace(-3, 4, 40) + 0.01]).t().contiguous()

    def field(t, y, rate):
        return torch.tanh(y.roll(1, -1)) - rate[:, None, None] * (y - torch.cos(t)[:, None, None])

    first, second = (
        fastnode.solve(
            field, y0, ts, args=(rate,), per_sample=True, save="dense", engine=engine,
            controller="PI", rtol=1e-4,
        )
        for engine in ENGINES
    )  # fmt: skip
    assert torch.equal(first.nfe, second.nfe) and torch.equal(first.rejected, second.rejected)
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(first.ys, second.ys, **close)
    middle = ts.mean(1, keepdim=True)
    torch.testing.assert_close(first.evaluate(middle), second.evaluate(middle), **close)
    for ours, theirs in zip(first.steps, second.steps, strict=True):
        torch.testing.assert_close(ours.states, theirs.states, rtol=1e-3, atol=1e-3)
        assert len(ours) == len(theirs)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "field",
    [lambda t, y: y, lambda t, y: y.flip(1), lambda t, y: y.t().contiguous().t()],
    ids=["its argument", "a copy", "not contiguous"],
)
def test_what_the_field_keeps_and_returns_is_not_written_over(field, engine):
    kept = []

    def keeping(t, y):
        out = field(t, y)
        kept.append((t, y, out, t.clone(), y.clone(), out.clone()))
        return out

    y0 = torch.tensor([[1.0, 2.0], [0.5, 0.1]], dtype=torch.float64)
    before = y0.clone()
    found = fastnode.solve(keeping, y0, times(0, 1), per_sample=True, engine=engine, rtol=1e-7)
    assert all(torch.equal(a, b) for each in kept for a, b in zip(each[:3], each[3:], strict=True))
    assert torch.equal(y0, before)
    wanted = fastnode.solve(field, y0, times(0, 1), per_sample=True, engine="reference", rtol=1e-7)
    torch.testing.assert_close(found.ys, wanted.ys)


@pytest.mark.skipif(not AVAILABLE, reason="without the extension")
def test_native_engine_says_what_it_cannot_run():
    def solve(rate, **options):
        return fastnode.solve(
            lambda t, y, rate: -rate[:, None] * y, torch.ones(3, 2), torch.tensor([0.0, 1.0]),
            args=(rate,), per_sample=True, engine="native", **options,
        )  # fmt: skip

    rate = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match="engine 'native' cannot run this solve"):
        solve(rate)
    with pytest.raises(ValueError, match="engine 'native' cannot run this solve"):
        solve(rate.detach(), method="dopri8")
    with torch.no_grad():
        solve(rate)


def test_gradients_that_the_field_shows_late_are_not_lost():
    weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def field(t, y):
        return -y * (weight if t[0] > 0.5 else 1.0)

    y0 = torch.ones(2, 1, dtype=torch.float64)
    found = fastnode.solve(field, y0, times(0, 1), per_sample=True, max_step=0.25, rtol=1e-6)
    (grad,) = torch.autograd.grad(found.ys[-1].sum(), weight)
    assert grad.item() == pytest.approx(-math.exp(-1.5), rel=1e-2)
