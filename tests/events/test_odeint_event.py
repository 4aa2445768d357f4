from __future__ import annotations

import math

import pytest
import torch
import torchdiffeq

import fastnode

#: Methods with the options and tolerances under which both libraries find an event.
WAYS = {
    "dopri5": {"method": "dopri5", "rtol": 1e-8, "atol": 1e-9},
    "bosh3": {"method": "bosh3", "rtol": 1e-8, "atol": 1e-8},
    "euler": {"method": "euler", "options": {"step_size": 0.02}},
    "rk4": {"method": "rk4", "options": {"step_size": 0.07}},
    "cubic": {"method": "rk4", "options": {"step_size": 0.07, "interp": "cubic"}},
}
FIXED = {"method": "rk4", "options": {"step_size": 0.01, "interp": "cubic"}}
OWN = [{}, {"method": "tsit5"}, {"method": "dopri8"}, FIXED]


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def pendulum(t, y):
    return torch.stack([y[1], -torch.sin(y[0])])


def decay(t, y):
    return -y


def swing(t, y):
    """Zero at every multiple of pi if it starts from zero at zero."""
    return torch.cos(t) * torch.ones_like(y)


def both(**arguments):
    """The same search by fastnode and torchdiffeq."""
    return [library.odeint_event(**arguments) for library in (fastnode, torchdiffeq)]


@pytest.mark.parametrize("reverse_time", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_agrees_with_torchdiffeq(way, reverse_time):
    ours, theirs = both(
        func=pendulum,
        y0=vector(1.0, 0.3),
        t0=torch.tensor(0.4),
        event_fn=lambda t, y: y[0] + 0.2,
        reverse_time=reverse_time,
        **WAYS[way],
    )
    assert ours[0].dtype == theirs[0].dtype == torch.float32 and ours[0].shape == theirs[0].shape
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_first_element_to_change_sign_fires_the_event(way):
    levels = vector(0.5, -0.7, 0.2)

    def event_fn(t, y):
        return torch.cat([y[:1] - levels[:2], y[1:] + levels[2], t.reshape(1).double() - 40])

    ours, theirs = both(
        func=pendulum, y0=vector(1.0, 0.3), t0=vector(0.0), event_fn=event_fn, **WAYS[way]
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_tuple_states_agree_with_torchdiffeq(way):
    ours, theirs = both(
        func=lambda t, y: (y[1].mean().reshape(1), -torch.sin(y[0]).expand(2, 1)),
        y0=(vector(1.0), torch.full((2, 1), 0.3, dtype=torch.float64)),
        t0=torch.tensor(0.0),
        event_fn=lambda t, y: y[0] + 0.2,
        **WAYS[way],
    )
    assert [part.shape for part in ours[1]] == [(2, 1), (2, 2, 1)]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", OWN, ids=str)
@pytest.mark.parametrize("reverse_time", [False, True])
def test_the_event_lies_on_the_solution(way, reverse_time):
    y0 = vector(0.25 if reverse_time else 1.0)
    t, y = fastnode.odeint_event(
        decay, y0, vector(3.0), event_fn=lambda t, y: y - 0.5, reverse_time=reverse_time, **way
    )
    wanted = 3 - math.log(2) if reverse_time else 3 + math.log(2)
    assert t.shape == () and t.item() == pytest.approx(wanted, abs=1e-7)
    torch.testing.assert_close(y, torch.stack([y0, vector(0.5)]), rtol=0, atol=1e-13)


def test_events_of_time_alone_are_found_exactly():
    for way in ({"rtol": 1e-2, "atol": 1e-2}, FIXED):
        t, _ = fastnode.odeint_event(
            decay, vector(1.0), vector(0.0), event_fn=lambda t, y: t**3 - 0.343, **way
        )
        assert t.item() == pytest.approx(0.7, abs=1e-14)


def test_an_event_function_that_jumps_is_found_by_its_sign():
    t, _ = fastnode.odeint_event(
        decay, vector(1.0), vector(0.0), event_fn=lambda t, y: torch.where(y > 0.5, 1, -3)
    )
    assert t.item() == pytest.approx(math.log(2), abs=1e-7)


def test_few_evaluations_find_the_event():
    seen = []

    def event_fn(t, y):
        seen.append(t)
        return y[0] + 0.2

    fastnode.odeint_event(
        pendulum, vector(1.0, 0.3), vector(0.0), event_fn=event_fn, options={"first_step": 0.1}
    )
    steps = 30
    assert len(seen) < steps + 25


@pytest.mark.parametrize("way", OWN, ids=str)
@pytest.mark.parametrize("reverse_time", [False, True])
def test_event_starting_at_zero_fires_at_next_sign_change(way, reverse_time):
    t, _ = fastnode.odeint_event(
        swing,
        vector(0.0),
        vector(0.0),
        event_fn=lambda t, y: y,
        reverse_time=reverse_time,
        **way,
    )
    assert t.item() == pytest.approx(-math.pi if reverse_time else math.pi, abs=1e-6)


def test_event_resting_at_zero_gets_its_sign_later():
    t, _ = fastnode.odeint_event(
        decay,
        vector(1.0),
        vector(0.0),
        event_fn=lambda t, y: torch.relu(t - 1) * (2 - t),
        options={"max_step": 0.2},
    )
    assert t.item() == pytest.approx(2.0, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("way", OWN, ids=str)
def test_a_search_from_an_event_finds_the_next_one(way, dtype):
    t, y, found = torch.tensor(0.0, dtype=dtype), torch.zeros(1, dtype=dtype), []
    tolerance = {"rtol": 1e-6, "atol": 1e-6}
    for _ in range(4):
        t, states = fastnode.odeint_event(
            swing, y, t, event_fn=lambda t, y: y, **{**tolerance, **way}
        )
        y = states[-1]
        found.append(t.item())
    assert found == pytest.approx([math.pi * i for i in range(1, 5)], abs=1e-4)


@pytest.mark.parametrize("method", ["midpoint", "heun3", "rk4"])
def test_fixed_steps_in_float32_keep_torchdiffeqs_accuracy(method):
    # 156 steps from 3.2 along a line of slope 0.2, which attracts: what is rounded in each adds up.
    def func(t, y):
        line = 0.2 * t + 3
        return 0.2 + (y - line) ** 5

    y0, times = torch.tensor(3.2), torch.tensor([1.0, 2.0])
    errors = []
    for library in (fastnode, torchdiffeq):
        t, _ = library.odeint(
            func,
            y0,
            times,
            event_fn=lambda t, y: y - (0.2 * (23 / 9) + 3),
            method=method,
            options={"step_size": 0.01},
        )
        errors.append(abs(t.item() - 23 / 9))
    assert errors[0] <= 1.2 * errors[1]


def test_of_three_roots_in_one_step_the_first_one_is_found():
    def event_fn(t, y):
        return (y - 0.2) * (y - 0.5) * (y - 0.7)

    options = {"first_step": 1.0, "min_step": 1.0, "max_step": 1.0}
    t, _ = fastnode.odeint_event(
        lambda t, y: torch.ones_like(y),
        vector(0.0),
        vector(0.0),
        event_fn=event_fn,
        options=options,
    )
    assert t.item() == pytest.approx(0.2, abs=1e-12)


@pytest.mark.parametrize("way", [{}, FIXED], ids=str)
def test_a_search_without_an_event_ends(monkeypatch, way):
    monkeypatch.setattr("fastnode.events.search.MAX_FIXED_STEPS", 100)
    with pytest.raises(fastnode.EventNotFound, match="no event") as caught:
        fastnode.odeint_event(
            lambda t, y: y * 0, vector(1.0), vector(0.0), event_fn=lambda t, y: y, **way
        )
    assert isinstance(caught.value, RuntimeError)


def test_the_number_of_steps_is_limited():
    with pytest.raises(fastnode.MaxStepsExceeded):
        fastnode.odeint_event(
            swing,
            vector(0.0),
            vector(0.0),
            event_fn=lambda t, y: y + 3,
            options={"max_num_steps": 20},
        )


def test_jumps_and_callbacks_work_in_a_search():
    class Ramp:
        """y' jumps from 1 to 10 at t = 1."""

        def __init__(self):
            self.ends = []

        def __call__(self, t, y):
            return torch.ones_like(y) * (1.0 if t < 1 else 10.0)

        def callback_accept_step(self, t0, y0, dt):
            self.ends.append((t0 + dt).item())

    ramp = Ramp()
    t, _ = fastnode.odeint_event(
        ramp, vector(0.0), vector(0.0), event_fn=lambda t, y: y - 2, options={"jump_t": vector(1.0)}
    )
    assert t.item() == pytest.approx(1.1, abs=1e-12) and 1.0 in ramp.ends


def test_extra_arguments_go_to_the_field():
    t, _ = fastnode.odeint_event(
        lambda t, y, a, b: -a * y + b,
        vector(1.0),
        vector(0.0),
        event_fn=lambda t, y: y - 0.5,
        args=(2.0, 0.0),
    )
    assert t.item() == pytest.approx(math.log(2) / 2, abs=1e-7)


def test_odeint_takes_event_fn_as_torchdiffeq_does():
    arguments = {"rtol": 1e-8, "atol": 1e-8, "event_fn": lambda t, y: y - 0.5}
    for t in (vector(0.0, 9.0), vector(0.0, -9.0)):
        y0 = vector(1.0 if t[1] > 0 else 0.25)
        ours = fastnode.odeint(decay, y0, t, **arguments)
        theirs = torchdiffeq.odeint(decay, y0, t, **arguments)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"event_fn": 3}, TypeError, "event_fn must be callable, got int"),
        ({"event_fn": lambda t, y: 1.0}, TypeError, "event_fn must return a tensor, got float"),
        ({"event_fn": lambda t, y: y > 0}, TypeError, "event_fn must return real values"),
        ({"event_fn": lambda t, y: y[:0]}, ValueError, "event_fn must return at least one value"),
        ({"event_fn": lambda t, y: y * torch.nan}, fastnode.NonFiniteState, "event_fn returned"),
        ({"event_fn": lambda t, y: y.repeat(1 + int(t > 0.1))}, ValueError, "1 values each time"),
        ({"t0": 0.0}, TypeError, "t0 must be a tensor, got float"),
        ({"t0": vector(0.0, 1.0)}, ValueError, "t0 must hold one time"),
        ({"t0": torch.tensor(0)}, TypeError, "t must be floating"),
        ({"method": "rk4"}, AssertionError, "options must hold step_size"),
        ({"method": "rk4"}, ValueError, "options must hold step_size"),
        (
            {"method": "scipy_solver"},
            ValueError,
            "event_fn must be None with method 'scipy_solver'",
        ),
    ],
    ids=lambda value: None,
)
def test_bad_arguments_are_named(change, kind, words):
    arguments = {"y0": vector(1.0), "t0": vector(0.0), "event_fn": lambda t, y: y - 0.5, **change}
    with pytest.raises(kind, match=words):
        fastnode.odeint_event(decay, **arguments)


def test_a_search_takes_two_times():
    for library in (fastnode, torchdiffeq):
        with pytest.raises(ValueError):
            library.odeint(decay, vector(1.0), vector(0.0, 1.0, 2.0), event_fn=lambda t, y: y)
