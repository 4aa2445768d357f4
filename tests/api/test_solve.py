from __future__ import annotations

import math

import pytest
import torch

import fastnode

ADAPTIVE = ["dopri5", "tsit5"]
FIXED = {"euler": 1, "midpoint": 2, "rk4": 4, "implicit_midpoint": 2, "explicit_adams": 4}


def swing(t, y):
    """y' = y cos t, solved by y0 exp(sin t - sin t0)."""
    return y * torch.cos(t)


def solution(t, t0=0.0):
    return torch.exp(torch.sin(t) - math.sin(t0))


def oscillator(t, y, mu):
    x, v = y[..., 0], y[..., 1]
    return torch.stack((v, mu * (1 - x * x) * v - x), -1)


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


def state(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Net(torch.nn.Module):
    def __init__(self, dim=4):
        super().__init__()
        torch.manual_seed(0)
        self.inner = torch.nn.Linear(dim, 16, dtype=torch.float64)
        self.outer = torch.nn.Linear(16, dim, dtype=torch.float64)

    def forward(self, t, y):
        return self.outer(torch.tanh(self.inner(y))) + torch.sin(3 * t) * y


@pytest.mark.parametrize("t", [times(0, 0.3, 1, 2.5), times(2.5, 1, -0.2), times(0.7)], ids=str)
@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED])
def test_values_are_those_of_odeint_with_its_controller(method, t):
    net, y0, controller = Net(), state(5, 4), fastnode.Controller(keeps_accepted=True)
    found = fastnode.solve(net, y0, t, method=method, rtol=1e-6, atol=1e-8, controller=controller)
    wanted = fastnode.odeint(net, y0, t, method=method, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.ys, wanted, rtol=1e-12, atol=1e-12)
    assert found.ts is t and found.status == "finished"


@pytest.mark.parametrize("save", ["times", "steps", "dense"])
@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED])
def test_evaluations_are_counted(method, save):
    calls = []

    def field(t, y):
        calls.append(t.item())
        return swing(t, y)

    t = times(0, 0.5, 1)
    found = fastnode.solve(field, state(3), t, method=method, save=save)
    assert found.nfe == len(calls) > 0
    assert min(calls) >= 0 and max(calls) <= 1


@pytest.mark.parametrize("method", ADAPTIVE)
def test_steps_and_rejections_add_up_to_the_evaluations(method):
    y0 = times(2, 0)
    found = fastnode.solve(
        oscillator, y0, times(0, 20), args=(5.0,), method=method, rtol=1e-6, save="steps"
    )
    assert found.rejected > 0
    assert found.nfe == 2 + 6 * (found.accepted + found.rejected)
    steps = found.steps
    assert len(steps) == found.accepted == steps.h.numel() == steps.stiffness.numel()
    assert steps.times[0] == 0 and steps.times[-1] == 20
    assert bool((steps.h > 0).all()) and bool((steps.error <= 1).all())
    assert steps.states.shape == (found.accepted + 1, 2)
    assert torch.equal(steps.states[0], y0) and torch.equal(steps.states[-1], found.ys[-1])


def test_stiffness_is_near_one_where_stability_limits_the_step():
    def decay(t, y):
        return -500 * (y - torch.cos(t))

    stiff = fastnode.solve(decay, times(1), times(0, 2), rtol=1e-3, atol=1e-3)
    assert 0.8 < stiff.steps.stiffness[20:-1].mean() < 1.2
    easy = fastnode.solve(swing, times(1), times(0, 2), rtol=1e-6, atol=1e-6)
    assert easy.steps.stiffness.max() < 0.3
    euler = fastnode.solve(swing, times(1), times(0, 2), method="euler")
    assert bool(euler.steps.stiffness.isnan().all() & euler.steps.error.isnan().all())
    still = fastnode.solve(lambda t, y: y * 0 + 1, times(1), times(0, 2))
    assert bool((still.steps.stiffness == 0).all())


@pytest.mark.parametrize("controller", ["PI", "PID"])
def test_controllers_with_memory_reject_fewer_steps(controller):
    arguments = {"args": (10.0,), "rtol": 1e-5, "atol": 1e-5}
    plain = fastnode.solve(oscillator, times(2, 0), times(0, 20), **arguments)
    smooth = fastnode.solve(
        oscillator, times(2, 0), times(0, 20), **arguments, controller=controller
    )
    assert smooth.rejected < 0.7 * plain.rejected
    torch.testing.assert_close(smooth.ys, plain.ys, rtol=1e-2, atol=1e-2)


def test_limits_of_the_step_size_are_kept():
    found = fastnode.solve(swing, times(1), times(0, 1), max_step=0.03)
    assert found.steps.h.max() <= 0.03 * (1 + 1e-12)
    found = fastnode.solve(
        swing, times(1), times(0, 1), rtol=1e-12, controller=fastnode.Controller(min_step=0.25)
    )
    assert found.accepted == 4
    assert fastnode.solve(swing, times(1), times(0, 1), first_step=0.01).steps.h[0] == 0.01


@pytest.mark.parametrize("method", FIXED)
def test_fixed_steps_by_number_and_by_size(method):
    t = torch.linspace(0, 2, 37, dtype=torch.float64)
    errors = []
    for steps in (16, 32, 64):
        found = fastnode.solve(swing, times(1), t, method=method, steps=steps)
        same = fastnode.solve(swing, times(1), t, method=method, step_size=2 / steps)
        torch.testing.assert_close(found.ys, same.ys)
        assert found.accepted == steps and found.rejected == 0
        errors.append((found.ys[:, 0] - solution(t)).abs().max().item())
    assert abs(math.log2(errors[-2] / errors[-1]) - FIXED[method]) < 0.4


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize(("method", "steps"), [("tsit5", None), ("dopri5", None), ("rk4", 9)])
def test_gradients_are_those_of_finite_differences(method, steps, direction):
    net = Net(2)
    y0 = state(2, 2).requires_grad_()
    t = (direction * times(0, 0.2, 0.5)).requires_grad_()
    fixed = {"steps": steps} if steps else {"min_step": 0.1, "max_step": 0.1, "first_step": 0.1}
    assert torch.autograd.gradcheck(
        lambda y, t, a: (
            fastnode.solve(
                lambda t, y, a: net(t, y) * a, y, t, args=(a,), method=method, **fixed
            ).ys
        ),
        (y0, t, torch.tensor(1.2, dtype=torch.float64, requires_grad=True)),
    )


def test_tuple_states():
    def pendulum(t, y):
        return y[1], -torch.sin(y[0])

    y0 = (state(2, 3), state(2, 3) * 0.1)
    t = times(0, 1, 2)
    found = fastnode.solve(pendulum, y0, t, rtol=1e-7, atol=1e-7, save="dense")
    wanted = fastnode.odeint(pendulum, y0, t, rtol=1e-7, atol=1e-7, method="tsit5")
    torch.testing.assert_close(found.ys, wanted)
    assert [x.shape for x in found.steps.states] == [(found.accepted + 1, 2, 3)] * 2
    torch.testing.assert_close(found.evaluate(1.0), tuple(x[1] for x in wanted))


def test_a_failed_solve_says_why_and_keeps_what_it_has():
    def blows_up(t, y):
        return y * y

    t = times(0, 0.5, 2)
    with pytest.raises(fastnode.StepSizeUnderflow):
        fastnode.solve(blows_up, times(1), t)
    found = fastnode.solve(blows_up, times(1), t, throw=False, rtol=1e-6, save="dense")
    assert found.status == "StepSizeUnderflow"
    torch.testing.assert_close(found.ys[:2, 0], times(1, 2), rtol=1e-4, atol=1e-4)
    assert bool(found.ys[2].isnan().all())
    assert found.steps.times[-1] == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match="t must lie in"):
        found.evaluate(1.5)
    with pytest.raises(fastnode.MaxStepsExceeded):
        fastnode.solve(swing, times(1), times(0, 1), max_num_steps=1)
    with pytest.raises(fastnode.MaxStepsExceeded):
        fastnode.solve(swing, times(1), times(0, 1), method="euler", steps=3, max_num_steps=2)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"func": 3}, TypeError, "func must be callable"),
        ({"y0": [torch.ones(2)]}, TypeError, "y0 must be a tensor or a tuple"),
        ({"ts": [0.0, 1.0]}, TypeError, "ts must be a tensor, got list"),
        ({"ts": times(0, 1, 1)}, ValueError, "ts must be strictly"),
        ({"method": "dopri6"}, ValueError, "method must be one of"),
        ({"save": "all"}, ValueError, "save must be one of times, steps, dense, got 'all'"),
        ({"engine": "fast"}, ValueError, "engine must be one of"),
        ({"controller": "P"}, ValueError, "controller must be one of I, PI, PID"),
        ({"args": torch.ones(2)}, TypeError, "args must be a tuple or a list, got Tensor"),
        ({"min_step": 2.0, "max_step": 1.0}, ValueError, "min_step and max_step must satisfy"),
        ({"first_step": 0.0}, ValueError, "first_step must be positive"),
        ({"first_step": "big"}, TypeError, "first_step must be a number"),
        ({"max_num_steps": 0}, ValueError, "max_num_steps must be an integer"),
        ({"rtol": -1.0}, ValueError, "rtol must not be negative"),
        ({"step_size": 0.1}, ValueError, "need a method of fixed steps, got 'tsit5'"),
        ({"method": "rk4", "step_size": -1.0}, ValueError, "step_size must be positive"),
        ({"method": "rk4", "steps": 1.5}, ValueError, "steps must be an integer"),
        ({"method": "rk4", "steps": 2, "step_size": 1.0}, ValueError, "exclude each other"),
        ({"method": "rk4", "per_sample": True}, ValueError, "per_sample needs a method with"),
        ({"per_sample": True, "y0": torch.tensor(1.0)}, ValueError, r"y0 must have shape \[B"),
        (
            {"per_sample": True, "y0": (torch.ones(2), torch.ones(3))},
            ValueError,
            r"y0 must have shape \[B, ...\] with one B",
        ),
        ({"per_sample": True, "ts": times(0, 1)[None]}, ValueError, r"ts must have shape \[T\] or"),
        (
            {"per_sample": True, "ts": torch.stack([times(0, 1), times(1, 1)])},
            ValueError,
            "for each sample, got .* for sample 1",
        ),
        ({"per_sample": True, "ts": times(0, 1, 1)}, ValueError, "ts must be strictly"),
        ({"per_sample": True, "ts": torch.ones(2, 2, 2)}, ValueError, "ts must have shape"),
        ({"per_sample": True, "rtol": torch.ones(3)}, ValueError, r"rtol must be .* shape \[2\]"),
        ({"per_sample": True, "atol": -torch.ones(2)}, ValueError, "atol must not be negative"),
        ({"per_sample": True, "atol": "small"}, TypeError, "atol must be a number or a tensor"),
        ({"per_sample": True, "first_step": -1.0}, ValueError, "first_step must be positive"),
    ],
    ids=lambda value: None,
)
def test_bad_arguments_are_named_before_the_field_is_called(change, kind, words):
    def untouched(t, y):
        raise AssertionError("func was called")

    arguments = {"func": untouched, "y0": torch.ones(2), "ts": times(0, 1), **change}
    with pytest.raises(kind, match=words):
        fastnode.solve(arguments.pop("func"), arguments.pop("y0"), arguments.pop("ts"), **arguments)


@pytest.mark.parametrize("per_sample", [False, True])
def test_what_the_field_returns_is_checked(per_sample):
    for func, kind, words in (
        (lambda t, y: y[:1], ValueError, "func must return the"),
        (lambda t, y: y * 1j, TypeError, "func must return the state's dtype torch.float32"),
        (lambda t, y: None, TypeError, "func must return a tensor, got NoneType"),
    ):
        with pytest.raises(kind, match=words):
            fastnode.solve(func, torch.ones(2), times(0, 1), per_sample=per_sample)
    with pytest.raises(TypeError, match="func must return a tuple of 2 tensors"):
        y0 = (torch.ones(2), torch.ones(2))
        fastnode.solve(lambda t, y: y[0], y0, times(0, 1), per_sample=per_sample)
