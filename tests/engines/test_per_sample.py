from __future__ import annotations

import math

import pytest
import torch
from selection import slow_but

import fastnode
from fastnode.extension import AVAILABLE

ADAPTIVE = ["dopri5", "tsit5", "bosh3", "adaptive_heun", "dopri8"]
ENGINES = ["reference", "native"] if AVAILABLE else ["reference"]


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


def oscillator(t, y, mu):
    x, v = y[..., 0], y[..., 1]
    return torch.stack((v, mu * (1 - x * x) * v - x + torch.sin(t)), -1)


MU = torch.logspace(-1, 1, 7, dtype=torch.float64)
Y0 = torch.stack([times(2, 0), times(0.5, 1)]).repeat(4, 1)[:7]
SPANS = torch.stack(
    [
        times(0, 1, 3, 10), times(0, 0.1, 0.2, 0.3), times(5, 4, 3, 2.5), times(-3, -2, 0, 9),
        times(0, 6, 7, 8), times(1, 0.9, 0.8, 0.5), times(2, 4, 6, 8),
    ]
)  # fmt: skip
TOLERANCES = torch.logspace(-3, -9, 7, dtype=torch.float64)


def solve(**changes):
    arguments = {"args": (MU,), "per_sample": True, "rtol": 1e-5, "atol": 1e-7, **changes}
    return fastnode.solve(oscillator, Y0, arguments.pop("ts", SPANS), **arguments)


def alone(b, **changes):
    arguments = {"args": (MU[b],), "rtol": 1e-5, "atol": 1e-7, **changes}
    return fastnode.solve(oscillator, Y0[b], arguments.pop("ts", SPANS[b]), **arguments)


def assert_same(batch, b, one):
    torch.testing.assert_close(batch.ys[:, b], one.ys, rtol=1e-7, atol=1e-7)
    assert [batch.nfe[b], batch.accepted[b], batch.rejected[b]] == [
        one.nfe,
        one.accepted,
        one.rejected,
    ]
    # Sums in another order: what is near the rounding of the state moves steps a little.
    steps, close = batch.steps[b], {"rtol": 1e-3, "atol": 1e-4, "equal_nan": True}
    torch.testing.assert_close(steps.times, one.steps.times, **close)
    torch.testing.assert_close(steps.error, one.steps.error, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(steps.stiffness, one.steps.stiffness, **close)
    if one.steps.states is not None:
        torch.testing.assert_close(steps.states, one.steps.states, **close)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("save", ["times", "dense"])
@pytest.mark.parametrize("method", slow_but(ADAPTIVE, "dopri5", "tsit5"))
def test_each_sample_is_solved_as_if_alone(method, save, engine):
    changes = {"method": method, "save": save, "rtol": 1e-2 if "heun" in method else 1e-5}
    if method == "dopri8":
        # The error of the step that it would begin with is rounding, which decides on the next.
        engine, changes["first_step"] = "auto", 0.2
    batch = solve(engine=engine, **changes)
    for b in range(7):
        assert_same(batch, b, alone(b, **changes))


@pytest.mark.parametrize("engine", ENGINES)
def test_per_sample_directions_tolerances_first_steps(engine):
    first = torch.logspace(-3, -1, 7, dtype=torch.float64)
    batch = solve(rtol=TOLERANCES, atol=TOLERANCES / 10, first_step=first, engine=engine)
    assert [math.copysign(1, steps.h[0]) for steps in batch.steps] == [1, 1, -1, 1, 1, -1, 1]
    for b in range(7):
        tolerance = TOLERANCES[b].item()
        one = alone(b, rtol=tolerance, atol=tolerance / 10, first_step=first[b].item())
        assert_same(batch, b, one)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("controller", ["PI", "PID"])
def test_controllers_remember_the_errors_of_each_sample(controller, engine):
    batch = solve(controller=controller, engine=engine)
    for b in range(7):
        assert_same(batch, b, alone(b, controller=controller))


@pytest.mark.parametrize("engine", ENGINES)
def test_limits_of_the_step_size_hold_for_each_sample(engine):
    batch = solve(max_step=0.05, rtol=1e-1, engine=engine)
    assert max(steps.h.abs().max() for steps in batch.steps) <= 0.05 * (1 + 1e-9)
    batch = solve(min_step=0.25, rtol=1e-12, ts=times(0, 1), args=(MU / 10,), engine=engine)
    assert batch.accepted.tolist() == [4] * 7 and batch.rejected.tolist() == [0] * 7


@pytest.mark.parametrize("engine", ENGINES)
def test_shared_times_and_shapes_of_a_joint_solve(engine):
    t = torch.linspace(0, 3, 5, dtype=torch.float64)
    batch = solve(ts=t, engine=engine)
    assert batch.ys.shape == (5, 7, 2) and batch.ts is t
    for b in range(7):
        assert_same(batch, b, alone(b, ts=t))
    single = solve(ts=times(1.5), engine=engine)
    assert torch.equal(single.ys, Y0[None]) and single.nfe.tolist() == [0] * 7


@pytest.mark.parametrize("engine", ENGINES)
def test_finished_samples_stop_costing_evaluations(engine):
    rows, last = [], []

    def field(t, y, end):
        assert y.shape[0] == t.shape[0] == end.shape[0]
        rows.append(y.shape[0])
        last.append(bool((t <= end).all()))
        return -y * (1 + t[:, None])

    end = torch.logspace(-2, 1, 64, dtype=torch.float64)
    ts = torch.stack([torch.zeros_like(end), end], 1)
    y0 = torch.ones(64, 3, dtype=torch.float64)
    found = fastnode.solve(field, y0, ts, args=(end,), per_sample=True, rtol=1e-6, engine=engine)
    assert rows == sorted(rows, reverse=True) and rows[0] == 64 and rows[-1] < 8
    assert found.nfe.sum() <= sum(rows) <= 8 / 7 * found.nfe.sum()
    # As many calls as the slowest sample alone needs.
    assert len(rows) == found.nfe.max()
    assert all(last)
    wanted = torch.exp(-end - end**2 / 2)[:, None].expand(64, 3)
    torch.testing.assert_close(found.ys[1], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_tensor_that_is_not_per_sample_is_passed_unchanged(engine):
    weight, note = torch.eye(2, dtype=torch.float64), object()

    def field(t, y, scale, weight_, note_):
        assert weight_ is weight and note_ is note
        return -(y @ weight_) * scale[:, None]

    fastnode.solve(field, Y0, SPANS, args=(MU, weight, note), per_sample=True, engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_rejected_steps_continue_at_same_place(engine):
    found = solve(first_step=3.0, ts=times(0, 3), save="steps", rtol=1e-8, engine=engine)
    assert found.rejected.min() > 0
    for b, steps in enumerate(found.steps):
        assert steps.times[0] == 0 and torch.equal(steps.states[0], Y0[b])
        assert bool((steps.error <= 1).all()) and found.accepted[b] == len(steps)


def test_gradients_are_those_of_finite_differences():
    ts = SPANS[:3, :3].clone().requires_grad_()
    y0, mu = Y0[:3].clone().requires_grad_(), MU[:3].clone().requires_grad_()
    size = {"first_step": 0.25, "min_step": 0.25, "max_step": 0.25}

    def end(y, t, mu):
        return fastnode.solve(oscillator, y, t, args=(mu,), per_sample=True, **size).ys

    assert torch.autograd.gradcheck(end, (y0, ts, mu))


def test_gradients_are_those_of_each_sample_alone():
    y0, mu = Y0.clone().requires_grad_(), MU.clone().requires_grad_()
    found = fastnode.solve(oscillator, y0, SPANS, args=(mu,), per_sample=True, rtol=1e-6)
    together = torch.autograd.grad(found.ys.square().sum(), (y0, mu))
    one = [
        fastnode.solve(oscillator, y0[b], SPANS[b], args=(mu[b],), rtol=1e-6).ys for b in range(7)
    ]
    apart = torch.autograd.grad(sum(y.square().sum() for y in one), (y0, mu))
    torch.testing.assert_close(together, apart, rtol=1e-6, atol=1e-6)


def test_rejected_steps_leave_no_nan_in_gradients():
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)

    def field(t, y):
        return -scale * torch.sqrt(y)

    y0 = torch.ones(2, 1, dtype=torch.float64)
    first = times(9, 0.1)
    found = fastnode.solve(
        field, y0, times(0, 1), per_sample=True, first_step=first, rtol=1e-8, atol=1e-8,
        max_num_steps=1000,
    )  # fmt: skip
    assert found.rejected[0] > 0
    found.ys[-1].sum().backward()
    # y(1) = (1 - s / 2)^2 for each of the two.
    assert scale.grad.item() == pytest.approx(-1, rel=1e-5)


def test_tuple_states_agree_with_each_sample_alone():
    def field(t, y, mu):
        x, v = y
        return v.sum(-1), -mu[..., None] * v - x[..., None]

    y0 = (Y0[:, 0].clone(), Y0[:, 1:].repeat(1, 3))
    found = fastnode.solve(field, y0, SPANS, args=(MU,), per_sample=True, save="dense")
    assert [x.shape for x in found.ys] == [(4, 7), (4, 7, 3)]
    for b in range(7):
        one = fastnode.solve(field, (y0[0][b], y0[1][b]), SPANS[b], args=(MU[b],), save="steps")
        for ours, theirs in zip(found.ys, one.ys, strict=True):
            torch.testing.assert_close(ours[:, b], theirs, rtol=1e-9, atol=1e-9)
        assert found.steps[b].states[1].shape == one.steps.states[1].shape


@pytest.mark.parametrize("shape", [(3,), (3, 0), (3, 2, 4), (1, 1)], ids=str)
@pytest.mark.parametrize("engine", ENGINES)
def test_samples_of_any_shape(shape, engine):
    y0 = torch.ones(shape, dtype=torch.float64)
    found = fastnode.solve(
        lambda t, y: -y, y0, times(0, 1), per_sample=True, save="dense", engine=engine
    )
    assert found.ys.shape == (2, *shape) and found.evaluate(0.5).shape == shape
    torch.testing.assert_close(found.ys[-1], y0 * math.exp(-1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.complex128], ids=str)
def test_states_keep_their_dtype(dtype):
    seen = set()

    def field(t, y):
        seen.add(t.dtype)
        return -y

    y0 = torch.ones(3, 2, dtype=dtype)
    found = fastnode.solve(
        field, y0, torch.linspace(0, 1, 4), per_sample=True, rtol=1e-2, save="dense"
    )
    assert found.ys.dtype == dtype and seen == {dtype.to_real()}
    assert (found.ys[-1] - math.exp(-1)).abs().max() < 0.02
    assert found.evaluate(0.3).dtype == dtype
