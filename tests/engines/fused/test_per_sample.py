"""Perceptrons solved in one call with steps of each sample's own, beside the reference engine."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastnode
from fastnode import extension
from fastnode.engines.fused import request as fused_request
from fastnode.engines.fused.mlp import ACTIVATIONS
from fastnode.nn import MLPField

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)
SETS = extension.native().mlp_instruction_sets() if extension.AVAILABLE else []


def field_of(dim, hidden, activation="tanh", time="every", bias=True, dtype=torch.float64):
    if not hidden:
        return MLPField(dim, 1, 1, activation, time, bias).to(dtype)
    return MLPField(dim, hidden, None, activation, time, bias).to(dtype)


def spans(batch, outputs, both_ways=True):
    """Times of each sample [batch, outputs], in either direction and of very different lengths."""
    starts = torch.rand(batch, 1, dtype=torch.float64)
    steps = torch.rand(batch, outputs - 1, dtype=torch.float64) + 0.01
    lengths = torch.logspace(-2, 0.5, batch, dtype=torch.float64)[torch.randperm(batch), None]
    times = torch.cat([starts, starts + lengths * steps.cumsum(1) / outputs], dim=1)
    return torch.where(torch.rand(batch, 1) < 0.5, -times, times) if both_ways else times


#: The largest tolerance of a solve here.
LOOSEST = 1e-3


def compare(found, expected, tolerance):
    assert found.status == expected.status
    for name in ("accepted", "rejected", "nfe"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    scale = 1 + expected.ys.nan_to_num().abs().max().item()
    for i, (ours, theirs) in enumerate(zip(found.steps, expected.steps, strict=True)):
        allowed = tolerance * max(1, len(theirs)) * scale
        if not (theirs.error[:-1] > 1e-3).all():
            # The estimate of an error this small is half rounding, and so is the next step's size.
            allowed += LOOSEST * scale
        else:
            # An estimate is a difference of derivatives: it has fewer digits than they.
            torch.testing.assert_close(ours.times, theirs.times, rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(ours.error, theirs.error, rtol=1e-4, atol=1e-7)
            # A step that ends later by a part of its size moves the state by that part of its
            # local error, some times over.
            sizes, moved = theirs.h.abs(), (ours.times - theirs.times).abs()
            if len(theirs):
                allowed += 10 * LOOSEST * scale * (moved.max() / sizes.min()).item()
        torch.testing.assert_close(
            found.ys[:, i], expected.ys[:, i], rtol=0, atol=allowed, equal_nan=True
        )


@given(
    dim=st.integers(1, 40),
    hidden=st.lists(st.integers(1, 40), max_size=4),
    activation=st.sampled_from(list(ACTIVATIONS)),
    time=st.sampled_from(["every", "once", "none"]),
    bias=st.booleans(),
    batch=st.integers(1, 90),
    outputs=st.integers(2, 9),
    method=st.sampled_from(["dopri5", "tsit5", "bosh3", "dopri8", "adaptive_heun"]),
    controller=st.sampled_from(["I", "PI", "PID"]),
    seed=st.integers(0, 99),
)
def test_each_sample_has_the_steps_and_states_of_the_reference(
    dim, hidden, activation, time, bias, batch, outputs, method, controller, seed
):
    torch.manual_seed(seed)
    field = field_of(dim, hidden, activation, time, bias)
    y0, ts = torch.randn(batch, dim, dtype=torch.float64), spans(batch, outputs)
    tolerance = torch.logspace(-5, -3, batch, dtype=torch.float64)
    options = {
        "method": method,
        "controller": controller,
        "per_sample": True,
        "rtol": tolerance,
        "atol": tolerance / 10,
    }
    if seed % 3 == 0:
        options["first_step"] = torch.logspace(-3, -1, batch, dtype=torch.float64)
    with torch.no_grad():
        found = fastnode.solve(field, y0, ts, engine="fused", **options)
        expected = fastnode.solve(field, y0, ts, engine="reference", **options)
        compare(found, expected, 1e-12)
        if method != "dopri8":
            native = fastnode.solve(field, y0, ts, engine="native", **options)
            compare(found, native, 1e-12)


@pytest.mark.parametrize("method", ["dopri5", "tsit5"])
def test_stiffness_is_that_of_the_reference(method):
    torch.manual_seed(0)
    field = field_of(5, [33], "tanh")
    y0, ts = torch.randn(40, 5).double(), spans(40, 3)
    options = {"method": method, "per_sample": True, "rtol": 1e-4, "atol": 1e-4}
    with torch.no_grad():
        found = fastnode.solve(field, y0, ts, engine="fused", **options)
        expected = fastnode.solve(field, y0, ts, engine="reference", **options)
    for ours, theirs in zip(found.steps, expected.steps, strict=True):
        torch.testing.assert_close(ours.stiffness, theirs.stiffness, rtol=1e-5, atol=1e-6)


@given(
    dim=st.integers(1, 20),
    batch=st.integers(1, 90),
    activation=st.sampled_from(["tanh", "silu", "softplus"]),
    seed=st.integers(0, 99),
)
def test_float32_agrees_with_float64(dim, batch, activation, seed):
    torch.manual_seed(seed)
    field = field_of(dim, [17, 9], activation, dtype=torch.float32)
    y0, ts = torch.randn(batch, dim), spans(batch, 4)
    options = {"method": "dopri5", "per_sample": True, "rtol": 1e-4, "atol": 1e-4}
    with torch.no_grad():
        found = fastnode.solve(field, y0, ts, engine="fused", **options)
        expected = fastnode.solve(field.double(), y0.double(), ts, engine="native", **options)
    assert found.ys.dtype == torch.float32
    torch.testing.assert_close(found.ys.double(), expected.ys, rtol=1e-3, atol=1e-3)
    # A decision may turn where the error is as near the tolerance as the rounding.
    assert (found.accepted - expected.accepted).abs().max() <= 2


@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("batch", [1, 7, 33, 70])
def test_instruction_sets_agree(monkeypatch, instructions, batch):
    torch.manual_seed(0)
    field = field_of(5, [33, 20], "gelu", "once")
    y0, ts = torch.randn(batch, 5).double(), spans(batch, 3)
    options = {"per_sample": True, "rtol": 1e-6, "atol": 1e-6}
    with torch.no_grad():
        expected = fastnode.solve(field, y0, ts, engine="reference", **options)
        monkeypatch.setattr(fused_request, "INSTRUCTIONS", instructions)
        compare(fastnode.solve(field, y0, ts, engine="fused", **options), expected, 1e-12)


def test_results_repeat_bit_for_bit_on_several_threads():
    torch.manual_seed(0)
    field = field_of(16, [64], "tanh", "none", True, torch.float32)
    y0, ts = torch.randn(333, 16), spans(333, 3)
    threads = torch.get_num_threads()
    runs = []
    for count in (1, 2, 2):
        torch.set_num_threads(count)
        with torch.no_grad():
            runs.append(fastnode.solve(field, y0, ts, engine="fused", per_sample=True))
    torch.set_num_threads(threads)
    assert all(torch.equal(run.ys, runs[0].ys) for run in runs)
    assert all(torch.equal(run.nfe, runs[0].nfe) for run in runs)


def test_auto_takes_it_for_a_plain_field():
    field = field_of(3, [8])
    calls = []
    field.register_forward_hook(lambda *_: calls.append(1))
    plain = field_of(3, [8])
    y0, ts = torch.randn(5, 3).double(), spans(5, 2)
    native = extension.native()
    before = native.mlp_solve_samples
    taken = []
    try:
        native.mlp_solve_samples = lambda *a: taken.append(1) or before(*a)
        with torch.no_grad():
            fastnode.solve(plain, y0, ts, per_sample=True)
            fastnode.solve(field, y0, ts, per_sample=True)
        assert len(taken) == 1 and calls
        assert fastnode.solve(plain, y0, ts, per_sample=True).ys.requires_grad
        assert len(taken) == 2
        solution = fastnode.solve(plain, y0, ts, per_sample=True, adjoint="none")
        assert len(taken) == 3 and not solution.ys.requires_grad
        slots = fastnode.Revolve(2)
        assert fastnode.solve(plain, y0, ts, per_sample=True, adjoint=slots).ys.requires_grad
    finally:
        native.mlp_solve_samples = before


def test_asked_for_by_name_it_says_what_it_cannot_do():
    field = field_of(3, [8])
    y0, ts = torch.randn(5, 3).double(), spans(5, 2)
    options = {"per_sample": True, "engine": "fused"}
    with torch.no_grad(), pytest.raises(ValueError, match="fused' cannot run .*save='times'"):
        fastnode.solve(field, y0, ts, save="steps", **options)
    with torch.no_grad(), pytest.raises(ValueError, match="MLPField"):
        fastnode.solve(lambda t, y: -y, y0, ts, **options)


@pytest.mark.parametrize("dim, batch", [(1, 3), (1, 40)])
def test_failures_are_those_of_the_reference(dim, batch):
    growing = MLPField(dim, 4, 2, "relu", "none").double()
    with torch.no_grad():
        for layer in growing.layers:
            layer.weight.fill_(1.0)
    y0 = torch.ones(batch, dim, dtype=torch.float64)
    ends = torch.linspace(0.5, 100, batch, dtype=torch.float64)
    ts = torch.stack([torch.zeros(batch).double(), ends / 2, ends], dim=1)
    options = {"per_sample": True, "max_num_steps": 300, "throw": False}
    y0[1] = math.inf
    with torch.no_grad():
        found = fastnode.solve(growing, y0, ts, engine="fused", **options)
        expected = fastnode.solve(growing, y0, ts, engine="reference", **options)
        assert found.status == expected.status and set(found.status) >= {
            "finished",
            "NonFiniteState",
        }
        assert torch.equal(found.ys.isnan(), expected.ys.isnan())
        options["throw"] = True
        with pytest.raises(fastnode.NonFiniteState, match="sample 1 at t = 0") as error:
            fastnode.solve(growing, y0, ts, engine="fused", **options)
        assert error.value.samples == (1,)
        options["max_num_steps"] = 2
        with pytest.raises(fastnode.MaxStepsExceeded, match="2 steps tried: sample 0"):
            fastnode.solve(growing, y0[:1], ts[:1], engine="fused", **options)


def test_one_time_costs_nothing_and_times_may_be_shared():
    field = field_of(3, [8])
    y0 = torch.randn(20, 3).double()
    with torch.no_grad():
        one = fastnode.solve(field, y0, torch.tensor([0.5]).double(), per_sample=True)
        assert torch.equal(one.ys[0], y0) and int(one.nfe.sum()) == 0
        ts = torch.tensor([0.0, 0.4, 1.0]).double()
        found = fastnode.solve(field, y0, ts, per_sample=True, engine="fused")
        expected = fastnode.solve(field, y0, ts, per_sample=True, engine="reference")
    compare(found, expected, 1e-12)
