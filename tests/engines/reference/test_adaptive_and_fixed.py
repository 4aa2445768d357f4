from __future__ import annotations

import math

import pytest
import torch

import fastnode
from fastnode.engines.reference import adaptive

ADAPTIVE = ["dopri5", "tsit5"]
FIXED = {"euler": 1, "midpoint": 2, "rk4": 4}


def swing(t, y):
    """y' = y cos t, solved by y0 exp(sin t - sin t0)."""
    return y * torch.cos(t)


def solution(t, t0=0.0):
    return torch.exp(torch.sin(t) - math.sin(t0))


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


def one(*shape):
    return torch.ones(shape or (1,), dtype=torch.float64)


def steady(h):
    """Options that make an adaptive method take steps of one size."""
    return {"first_step": h, "min_step": h, "max_step": h}


def orders(errors):
    return [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("method", FIXED)
def test_fixed_methods_converge_with_their_order(method, backward):
    errors = []
    for steps in (16, 32, 64):
        t = torch.linspace(0, 2, steps + 1, dtype=torch.float64)
        t = t.flip(0) if backward else t
        y = fastnode.odeint(swing, one() * solution(t[0]), t, method=method)
        errors.append((y[-1] - solution(t[-1])).abs().item())
    assert all(abs(order - FIXED[method]) < 0.35 for order in orders(errors))


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_methods_converge_with_order_five(method, backward):
    t = torch.linspace(0, 2, 5, dtype=torch.float64)
    t = t.flip(0) if backward else t
    errors = []
    for steps in (16, 32, 64):
        y = fastnode.odeint(
            swing, one() * solution(t[0]), t, method=method, options=steady(2 / steps)
        )
        errors.append((y[:, 0] - solution(t)).abs().max().item())
    assert orders(errors)[-1] > 4.6


@pytest.mark.parametrize("method", ADAPTIVE)
def test_dense_output_has_a_local_error_of_order_five(method):
    errors = []
    for h in (0.4, 0.2, 0.1):
        t = torch.linspace(0, h, 12, dtype=torch.float64)
        y = fastnode.odeint(swing, one(), t, method=method, options=steady(h))
        errors.append((y[:, 0] - solution(t)).abs().max().item())
    assert all(order > 4.6 for order in orders(errors))


@pytest.mark.parametrize(("interp", "order"), [("linear", 2), ("cubic", 4)])
def test_interpolation_between_grid_points_has_its_order(interp, order):
    errors = []
    for h in (0.2, 0.1, 0.05):
        t = torch.linspace(0, 2, 37, dtype=torch.float64)
        y = fastnode.odeint(
            swing, one(), t, method="rk4", options={"step_size": h, "interp": interp}
        )
        errors.append((y[:, 0] - solution(t)).abs().max().item())
    assert all(abs(found - order) < 0.6 for found in orders(errors))


@pytest.fixture
def steps(monkeypatch):
    """Every step that is tried: (t, t1, y)."""
    tried = []
    original = adaptive.take_step

    def recorded(field, tableau, t, t1, y, f, perturb):
        tried.append((t, t1, y))
        return original(field, tableau, t, t1, y, f, perturb)

    monkeypatch.setattr(adaptive, "take_step", recorded)
    monkeypatch.setattr(fastnode.engines.native.joint, "refusal", lambda y, times: "it is off")
    return tried


@pytest.mark.parametrize("method", ADAPTIVE)
def test_rejected_steps_continue_at_same_place(steps, method):
    t = times(0.0, 3.0)
    options = {"first_step": 3.0}
    y = fastnode.odeint(
        lambda t, y: -20 * (y - torch.cos(t)), one(), t, method=method, options=options
    )
    again = [(a, b) for a, b in zip(steps, steps[1:], strict=False) if a[0] == b[0]]
    assert len(again) >= 2
    for first, second in again:
        assert second[1] < first[1] and torch.equal(first[2], second[2])
    wanted = (400 * math.cos(3) + 20 * math.sin(3)) / 401
    assert abs(y[-1].item() - wanted) < 1e-6


@pytest.mark.parametrize("method", ADAPTIVE)
def test_field_is_never_evaluated_outside_the_interval(method):
    for t in (times(0.0, 0.1, 1.0), times(1.0, 0.3, -0.5), times(0.0, 1e-9)):
        seen = []

        def field(time, y, seen=seen):
            seen.append(time.item())
            return swing(time, y)

        fastnode.odeint(field, one(), t, method=method, rtol=1e-3, atol=1e-3)
        assert min(seen) >= t.min().item() and max(seen) <= t.max().item()


def test_output_times_do_not_change_the_steps(steps):
    fastnode.odeint(swing, one(), times(0.0, 2.0))
    few = [(a, b) for a, b, _ in steps]
    steps.clear()
    fastnode.odeint(swing, one(), torch.linspace(0, 2, 100, dtype=torch.float64))
    assert [(a, b) for a, b, _ in steps] == few


def test_limits_of_the_step_size_are_kept(steps):
    fastnode.odeint(swing, one(), times(0.0, 1.0), options={"max_step": 0.03})
    assert max(t1 - t for t, t1, _ in steps) <= 0.03 * (1 + 1e-12)
    steps.clear()
    fastnode.odeint(swing, one(), times(0.0, 1.0), options={"min_step": 0.25}, rtol=1e-12)
    assert len(steps) == 4


def test_perturbed_grid_points_lie_inside_the_step():
    seen = []

    def field(t, y):
        seen.append(t.item())
        return swing(t, y)

    t = torch.tensor([0.0, 1.0, 2.0])
    fastnode.odeint(field, one().float(), t, method="rk4", options={"perturb": True})
    assert 0 < seen[0] < 1e-30 and 1 - 1e-6 < seen[3] < 1 < seen[4] < 1 + 1e-6
    seen.clear()
    fastnode.odeint(field, one().float(), t.flip(0), method="rk4", options={"perturb": True})
    assert 2 - 1e-6 < seen[0] < 2 and 1 < seen[3] < 1 + 1e-6 and 1 - 1e-6 < seen[4] < 1


@pytest.mark.parametrize("method", ADAPTIVE)
def test_a_field_that_is_nan_far_away_only_shrinks_the_step(method):
    y = fastnode.odeint(
        lambda t, y: -torch.sqrt(y),
        one(),
        times(0.0, 1.0),
        method=method,
        options={"first_step": 9.0},
    )
    assert abs(y[-1].item() - 0.25) < 1e-6


class TestErrors:
    def test_nan_from_some_time_on(self):
        def field(t, y):
            return y * torch.nan if t > 0.5 else y

        with pytest.raises(fastnode.NonFiniteState, match="t = 0.5") as caught:
            fastnode.odeint(field, one(), times(0.0, 1.0))
        assert caught.value.time == pytest.approx(0.5) and 0 < caught.value.step < 1e-12

    def test_nan_at_once(self):
        with pytest.raises(fastnode.NonFiniteState):
            fastnode.odeint(lambda t, y: y * torch.nan, one(), times(0.0, 1.0))
        with pytest.raises(fastnode.NonFiniteState):
            fastnode.odeint(swing, one() * torch.inf, times(0.0, 1.0), options={"min_step": 0.1})
        with pytest.raises(fastnode.NonFiniteState):
            options = {"min_step": 0.1, "first_step": 0.5}
            fastnode.odeint(lambda t, y: y * torch.nan, one(), times(0.0, 1.0), options=options)

    @pytest.mark.timeout(60)
    @pytest.mark.parametrize("method", ADAPTIVE)
    def test_singularity(self, method):
        with pytest.raises(fastnode.StepSizeUnderflow, match="underflow in dt") as caught:
            fastnode.odeint(lambda t, y: y * y, one(), times(0.0, 2.0), method=method, rtol=1e-4)
        assert caught.value.time == pytest.approx(1.0, abs=1e-3)

    def test_too_many_steps(self):
        with pytest.raises(fastnode.MaxStepsExceeded, match="max_num_steps") as caught:
            fastnode.odeint(swing, one(), times(1.0, 0.0), options={"max_num_steps": 3})
        assert 0 < caught.value.time < 1 and caught.value.step < 0

    def test_all_are_solver_errors_and_what_torchdiffeq_raises(self):
        for kind in (
            fastnode.NonFiniteState,
            fastnode.StepSizeUnderflow,
            fastnode.MaxStepsExceeded,
        ):
            assert issubclass(kind, fastnode.SolverError) and issubclass(kind, AssertionError)
            assert issubclass(kind, RuntimeError)

    def test_exceptions_of_the_field_arrive_unchanged(self):
        class Odd(Exception):
            pass

        def field(t, y):
            raise Odd

        with pytest.raises(Odd):
            fastnode.odeint(field, one(), times(0.0, 1.0))
