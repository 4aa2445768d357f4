"""Gradients of per-sample solves of perceptrons in one call, beside those of the reference."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from selection import slow

import fastnode
from fastnode import extension
from fastnode.engines.fused import request as fused_request
from fastnode.engines.fused.mlp import ACTIVATIONS
from fastnode.nn import MLPField

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)
SETS = extension.native().mlp_instruction_sets() if extension.AVAILABLE else []


def field_of(dim, hidden, activation="tanh", time="every", bias=True, dtype=torch.float64):
    return MLPField(dim, hidden, None, activation, time, bias).to(dtype)


def spans(batch, outputs):
    """Times of each sample [batch, outputs], in either direction and of very different lengths."""
    starts = torch.rand(batch, 1, dtype=torch.float64)
    steps = torch.rand(batch, outputs - 1, dtype=torch.float64) + 0.01
    lengths = torch.logspace(-2, 0.5, batch, dtype=torch.float64)[torch.randperm(batch), None]
    times = torch.cat([starts, starts + lengths * steps.cumsum(1) / outputs], dim=1)
    return torch.where(torch.rand(batch, 1) < 0.5, -times, times)


def gradients(field, y0, ts, upstream, **options):
    """Of y0 and the parameters."""
    y = y0.clone().requires_grad_()
    solution = fastnode.solve(field, y, ts, per_sample=True, **options)
    return solution, torch.autograd.grad(solution.ys, [y, *field.parameters()], upstream)


@given(
    dim=st.integers(1, 20),
    hidden=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    activation=st.sampled_from(list(ACTIVATIONS)),
    time=st.sampled_from(["every", "once", "none"]),
    bias=st.booleans(),
    batch=st.integers(1, 90),
    outputs=st.integers(2, 9),
    method=st.sampled_from(["dopri5", "tsit5", "bosh3", "dopri8", "adaptive_heun"]),
    seed=st.integers(0, 99),
)
def test_gradients_are_those_of_the_reference(
    dim, hidden, activation, time, bias, batch, outputs, method, seed
):
    torch.manual_seed(seed)
    field = field_of(dim, hidden, activation, time, bias)
    y0, ts = torch.randn(batch, dim, dtype=torch.float64), spans(batch, outputs)
    upstream = torch.randn(outputs, batch, dim, dtype=torch.float64)
    # Sizes that no estimate of an error decides: steps are the same to the last digit.
    steps = {"rtol": 1.0, "atol": 1.0, "first_step": 0.11, "max_step": 0.11, "method": method}
    ours, found = gradients(field, y0, ts, upstream, engine="fused", **steps)
    theirs, expected = gradients(field, y0, ts, upstream, engine="reference", **steps)
    assert torch.equal(ours.accepted, theirs.accepted)
    for a, b in zip(found, expected, strict=True):
        # Fields with steep parts make the sums of large terms that cancel.
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * (1 + b.abs().max().item()))


@pytest.mark.parametrize("batch", [3, 40])
@pytest.mark.parametrize("adjoint", ["backprop", "checkpoint"])
def test_gradients_through_rejected_steps_match_reference(batch, adjoint):
    torch.manual_seed(1)
    field = field_of(4, [24, 24], "silu")
    with torch.no_grad():
        for p in field.parameters():
            p.mul_(3)
    y0, ts = torch.randn(batch, 4).double(), spans(batch, 5)
    upstream = torch.randn(5, batch, 4).double()
    options = {"rtol": 1e-5, "atol": 1e-6, "first_step": 0.5, "adjoint": adjoint}
    ours, found = gradients(field, y0, ts, upstream, engine="fused", **options)
    assert int(ours.rejected.sum()) > 0
    _, expected = gradients(field, y0, ts, upstream, engine="reference", **options)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("batch", [2, 17])
@pytest.mark.parametrize("method", [slow("dopri5"), slow("dopri8"), "adaptive_heun"])
def test_gradcheck_and_gradgradcheck(method, batch):
    torch.manual_seed(0)
    field = field_of(2, [3], "silu")
    y0 = torch.randn(batch, 2, dtype=torch.float64, requires_grad=True)
    ts = spans(batch, 3)
    values = [p.detach().clone().requires_grad_() for p in field.parameters()]
    options = {"rtol": 1.0, "atol": 1.0, "first_step": 0.3, "max_step": 0.3, "method": method}

    def solved(y, *parameters):
        for (name, _), value in zip(list(field.named_parameters()), parameters, strict=True):
            _, index, kind = name.split(".")
            field.layers[int(index)]._parameters[kind] = value
        return fastnode.solve(field, y, ts, per_sample=True, engine="fused", **options).ys

    assert torch.autograd.gradcheck(solved, (y0, *values))
    if batch == 2:
        assert torch.autograd.gradgradcheck(solved, (y0, *values))


@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("batch", [1, 7, 33, 70])
def test_instruction_sets_agree(monkeypatch, instructions, batch):
    torch.manual_seed(0)
    field = field_of(5, [33, 20], "gelu", "once")
    y0, ts = torch.randn(batch, 5).double(), spans(batch, 3)
    upstream = torch.randn(3, batch, 5).double()
    _, expected = gradients(field, y0, ts, upstream, engine="reference", rtol=1e-6, atol=1e-6)
    monkeypatch.setattr(fused_request, "INSTRUCTIONS", instructions)
    _, found = gradients(field, y0, ts, upstream, engine="fused", rtol=1e-6, atol=1e-6)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_per_sample_gradients_repeat_bit_for_bit():
    torch.manual_seed(0)
    field = field_of(16, [64], "tanh", "none", True, torch.float32)
    y0, ts = torch.randn(333, 16), spans(333, 3)
    runs, threads = [], torch.get_num_threads()
    torch.set_num_threads(2)
    for _ in range(3):
        ys = fastnode.solve(field, y0, ts, engine="fused", per_sample=True).ys
        for keeps in (True, False):
            found = torch.autograd.grad(
                ys.square().mean(), list(field.parameters()), retain_graph=keeps
            )
            runs.append(found)
    torch.set_num_threads(threads)
    assert all(map(torch.equal, runs[0], each) for each in runs)
    for each in runs[1:]:
        assert all(map(torch.equal, runs[0], each))


@pytest.mark.parametrize("batch", [slow(3), 40])
def test_failed_samples_have_no_gradient_past_their_end(batch):
    growing = MLPField(1, 4, 2, "relu", "none").double()
    with torch.no_grad():
        for layer in growing.layers:
            layer.weight.fill_(1.0)
    y0 = torch.ones(batch, 1, dtype=torch.float64)
    y0[1] = math.inf
    ends = torch.linspace(0.5, 100, batch, dtype=torch.float64)
    ts = torch.stack([torch.zeros(batch).double(), ends / 2, ends], dim=1)
    options = {"max_num_steps": 300, "throw": False}
    upstream = torch.ones(3, batch, 1).double()
    found = {}
    for engine in ("fused", "reference"):
        solution, found[engine] = gradients(growing, y0, ts, upstream, engine=engine, **options)
        assert {"finished", "NonFiniteState"} <= set(solution.status)
    done = torch.tensor([each == "finished" for each in solution.status])
    torch.testing.assert_close(found["fused"][0][done], found["reference"][0][done])
    assert found["fused"][0][1].item() == 1.0


def test_a_gradient_that_is_not_finite_stays_with_its_sample():
    torch.manual_seed(0)
    field = field_of(3, [8])
    y0, ts = torch.randn(30, 3).double().requires_grad_(), spans(30, 4)
    ys = fastnode.solve(field, y0, ts, engine="fused", per_sample=True).ys
    upstream = torch.ones_like(ys)
    upstream[2, 7] = math.nan
    (found,) = torch.autograd.grad(ys, y0, upstream)
    assert found[7].isnan().all() and found[torch.arange(30) != 7].isfinite().all()


def test_only_what_needs_a_gradient_gets_one():
    field = field_of(3, [8])
    y0, ts = torch.randn(20, 3).double(), spans(20, 2)
    field.layers[0].weight.requires_grad_(False)
    fastnode.solve(field, y0, ts, engine="fused", per_sample=True).ys.sum().backward()
    assert field.layers[0].weight.grad is None and field.layers[1].weight.grad is not None
    field.requires_grad_(False)
    y0.requires_grad_()
    fastnode.solve(field, y0, ts, engine="fused", per_sample=True).ys.sum().backward()
    assert y0.grad is not None
    assert not fastnode.solve(field, y0.detach(), ts, per_sample=True).ys.requires_grad


def test_gradients_of_times_are_made_by_another_engine():
    field = field_of(3, [8])
    y0, ts = torch.randn(5, 3).double(), spans(5, 2).requires_grad_()
    fastnode.solve(field, y0, ts, per_sample=True).ys.sum().backward()
    assert ts.grad is not None and ts.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="gradients of times"):
        fastnode.solve(field, y0, ts, per_sample=True, engine="fused")
