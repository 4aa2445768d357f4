from __future__ import annotations

import functools
import math

import pytest
import torch
import torchdiffeq
from selection import slow

import fastnode

TIGHT = {"rtol": 1e-11, "atol": 1e-12}
WAYS = {
    "dopri5": TIGHT,
    "dopri8": {"method": "dopri8", **TIGHT},
    "rk4": {"method": "rk4", "options": {"step_size": 0.02, "interp": "cubic"}},
}
COARSE = {"method": "rk4", "options": {"step_size": 0.1, "interp": "cubic"}}
INTERFACES = {
    "odeint": fastnode.odeint,
    "odeint_adjoint": fastnode.odeint_adjoint,
    "torchdiffeq": torchdiffeq.odeint,
}


def vector(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


class Problem:
    """A damped, driven pendulum and an event with parameters of its own."""

    def __init__(self):
        self.y0, self.t0 = vector(1.0, 0.3), vector(0.4)
        self.damping, self.level = vector(0.1), vector(-0.2)

    @property
    def leaves(self):
        return self.y0, self.t0, self.damping, self.level

    def solve(self, y0, t0, damping, level, odeint_event=fastnode.odeint_event, **kwargs):
        def field(t, y):
            force = torch.cos(t) - damping * y[1:]
            return torch.cat([y[1:], force - torch.sin(y[:1])])

        if kwargs.get("odeint_interface") is fastnode.odeint_adjoint:
            kwargs["adjoint_params"] = (damping,)
        t, y = odeint_event(
            field, y0, t0, event_fn=lambda t, y: y[0] - level * torch.cos(0.1 * t), **kwargs
        )
        return torch.cat([t.reshape(1), y[-1]])

    def jacobian(self, **kwargs):
        function = functools.partial(self.solve, **kwargs)
        return torch.autograd.functional.jacobian(function, self.leaves)


@pytest.mark.parametrize("reverse_time", [False, slow(True)])
@pytest.mark.parametrize("way", WAYS)
def test_gradients_agree_with_finite_differences(way, reverse_time):
    problem, step = Problem(), 1e-4
    kwargs = {"reverse_time": reverse_time, **WAYS[way]}
    jacobian = problem.jacobian(**kwargs)
    for i, leaf in enumerate(problem.leaves):
        for j in range(len(leaf)):
            moved = []
            for sign in (1, -1):
                leaves = [each.detach().clone() for each in problem.leaves]
                leaves[i][j] += sign * step
                moved.append(problem.solve(*leaves, **kwargs))
            wanted = (moved[0] - moved[1]) / (2 * step)
            torch.testing.assert_close(jacobian[i][:, j], wanted, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("reverse_time", [False, True])
def test_odeint_event_gradients_match_torchdiffeq(reverse_time):
    problem = Problem()
    kwargs = {"reverse_time": reverse_time, "rtol": 1e-10, "atol": 1e-11}
    ours = problem.jacobian(**kwargs)
    theirs = problem.jacobian(odeint_event=torchdiffeq.odeint_event, **kwargs)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours[2], theirs[2], rtol=1e-6, atol=1e-6)
    assert not theirs[3].any() and ours[3].all()


@pytest.mark.parametrize("interface", INTERFACES)
def test_gradients_are_right_whatever_solves(interface):
    problem = Problem()
    wanted = problem.jacobian(rtol=1e-10, atol=1e-11)
    found = problem.jacobian(odeint_interface=INTERFACES[interface], rtol=1e-10, atol=1e-11)
    chosen = (0, 2, 3) if interface == "torchdiffeq" else range(4)
    for i in chosen:
        torch.testing.assert_close(found[i], wanted[i], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("interface", ["odeint", "torchdiffeq"])
def test_tuple_states_have_gradients_through_the_event(interface):
    h, g = vector(2.0), vector(9.81)
    t, (height, speed, other) = fastnode.odeint_event(
        lambda t, y: (y[1], -g, y[2] * 0),
        (h, torch.zeros_like(h), torch.ones(2, 1, dtype=torch.float64)),
        torch.tensor(0.0, dtype=torch.float64),
        event_fn=lambda t, y: y[0],
        odeint_interface=INTERFACES[interface],
    )
    assert t.item() == pytest.approx(math.sqrt(4 / 9.81)) and other.shape == (2, 2, 1)
    by_h, by_g = torch.autograd.grad(t, (h, g), retain_graph=True)
    assert by_h.item() == pytest.approx(t.item() / 2 / 2.0)
    assert by_g.item() == pytest.approx(-t.item() / 2 / 9.81)
    # v^2 = 2 g h on the ground, and the height there is zero whatever h is.
    assert torch.autograd.grad(speed[-1], h, retain_graph=True)[0].item() == pytest.approx(
        -9.81 / math.sqrt(2 * 9.81 * 2)
    )
    assert torch.autograd.grad(height[-1], h)[0].item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("way", [{}, COARSE], ids=["dopri5", "rk4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bouncing_ball(way, dtype):
    """Bounces k = 1, 2, ... of a ball dropped from h come at sqrt(2 h / g) (1 + 2 e + ... +
    2 e^(k - 1)), e being the part of the speed that a bounce leaves."""
    h, g, e = (torch.tensor(value, dtype=dtype, requires_grad=True) for value in (3.0, 9.81, 0.8))
    t, y = torch.zeros((), dtype=dtype), torch.stack([h, torch.zeros_like(h)])
    field = lambda t, y: torch.stack([y[1], -g])  # noqa: E731
    for k in range(1, 6):
        t, states = fastnode.odeint_event(field, y, t, event_fn=lambda t, y: y[0], **way)
        y = torch.stack([states[-1][0], -e * states[-1][1]])
        first, part = math.sqrt(2 * 3.0 / 9.81), 0.8
        wanted = first * (1 + 2 * sum(part**i for i in range(1, k)))
        close = {"rel": 1e-4 if dtype == torch.float32 else 1e-9}
        assert t.item() == pytest.approx(wanted, **close)
        by_h, by_g, by_e = torch.autograd.grad(
            t, (h, g, e), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        assert by_h.item() == pytest.approx(wanted / 2 / 3.0, **close)
        assert by_g.item() == pytest.approx(-wanted / 2 / 9.81, **close)
        derivative = first * 2 * sum(i * part ** (i - 1) for i in range(1, k))
        assert by_e.item() == pytest.approx(derivative, **close)


def test_only_the_element_that_fired_shapes_the_gradient():
    a, b = vector(0.5), vector(-9.0)
    t, _ = fastnode.odeint_event(
        lambda t, y: -y,
        vector(1.0),
        vector(0.0),
        event_fn=lambda t, y: torch.cat([y - b, y - a, 100 * (y + 1)]),
    )
    by_a, by_b = torch.autograd.grad(t, (a, b))
    assert by_a.item() == pytest.approx(-2.0, rel=1e-6) and by_b.item() == 0


def test_events_of_time_alone_depend_on_their_parameters():
    end, y0 = vector(0.7), vector(1.0)
    t, y = fastnode.odeint_event(
        lambda t, y: -y, y0, vector(0.0), event_fn=lambda t, y: t - end, rtol=1e-9, atol=1e-9
    )
    by_end, by_y0 = torch.autograd.grad(y[-1], (end, y0), retain_graph=True)
    assert by_end.item() == pytest.approx(-math.exp(-0.7), rel=1e-6)
    assert by_y0.item() == pytest.approx(math.exp(-0.7), rel=1e-6)
    assert torch.autograd.grad(t, end)[0].item() == 1


def test_a_function_without_derivative_gives_the_time_no_gradient():
    y0 = vector(1.0)
    t, y = fastnode.odeint_event(
        lambda t, y: -y, y0, torch.zeros(()), event_fn=lambda t, y: torch.sign(y - 0.5)
    )
    (gradient,) = torch.autograd.grad(y[-1], y0)
    assert gradient.item() == pytest.approx(0.5, rel=1e-5) and not t.requires_grad


def test_complex_states_have_gradients_through_the_event():
    rate = vector(2.0)
    y0 = torch.ones(1, dtype=torch.complex128)
    t, _ = fastnode.odeint_event(
        lambda t, y: 1j * rate * y, y0, torch.zeros(()).double(), event_fn=lambda t, y: y.real
    )
    assert t.item() == pytest.approx(math.pi / 4)
    assert torch.autograd.grad(t, rate)[0].item() == pytest.approx(-math.pi / 8, rel=1e-5)


def test_no_graph_is_kept_where_no_gradient_is_asked_for():
    problem = Problem()
    with torch.no_grad():
        assert not problem.solve(*problem.leaves).requires_grad
