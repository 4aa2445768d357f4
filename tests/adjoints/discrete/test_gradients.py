"""Gradients of checkpoint, revolve and reversible against those of backprop."""

from __future__ import annotations

import gc
import weakref
from functools import partial

import pytest
import torch
from adjoint_cases import ADAPTIVE, state, steady, times
from selection import slow_but

import fastnode
from fastnode.adjoints.discrete import checkpoint, retained_graph
from fastnode.api import solve_joint
from fastnode.tableaus import METHODS

SAME = ["checkpoint", fastnode.Revolve(1), fastnode.Revolve(3)]


def gradients(net, adjoint, *, y0, timed=False, save="times", **options):
    """Values and gradients of a loss over everything that a solve returns."""
    y0 = y0.detach().clone().requires_grad_()
    w = torch.full((4,), 1.3, dtype=y0.dtype, requires_grad=True)
    t = times(0, 0.13, 0.14, 0.5, 0.9, 1.0, grad=timed)
    solution = fastnode.solve(net, y0, t, args=(w * 1,), adjoint=adjoint, save=save, **options)
    loss = (solution.ys * torch.linspace(-1, 1, solution.ys.numel()).view_as(solution.ys)).sum()
    if save != "times":
        steps = solution.steps if isinstance(solution.steps, list) else [solution.steps]
        loss = loss + sum(each.states.sin().sum() for each in steps)
    if save == "dense":
        loss = loss + solution.evaluate(torch.tensor([0.05, 0.37, 0.371, 0.99])).cos().sum()
    params = [p for name, p in net.named_parameters() if name != "unused"]
    found = torch.autograd.grad(loss, [y0, w, *([t] if timed else []), *params])
    return [solution.ys.detach(), *found]


@pytest.mark.parametrize("small", [True, False], ids=["by step", "by stage"])
@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("method", slow_but(METHODS, "rk4", "dopri5", "fehlberg2"))
def test_gradients_are_those_of_backprop(make_net, relative, monkeypatch, method, timed, small):
    monkeypatch.setattr(checkpoint, "SMALL", 2**30 if small else 0)
    net, y0 = make_net(), state(5, 4)
    for options in [{}] if method in ADAPTIVE else [{}, {"step_size": 0.07}]:
        solve = partial(gradients, net, y0=y0, timed=timed, method=method, **options)
        wanted = solve("backprop")
        for adjoint in SAME:
            assert relative(solve(adjoint), wanted) < 1e-10


@pytest.mark.parametrize("room", [2**15, 2**30], ids=["first steps", "all steps"])
@pytest.mark.parametrize("save", ["times", "steps", "dense"])
@pytest.mark.parametrize("method", slow_but(METHODS, "rk4", "dopri5", "fehlberg2"))
def test_a_graph_may_be_kept(make_net, relative, monkeypatch, method, save, room):
    monkeypatch.setattr(retained_graph, "ROOM", room)
    options = {"rtol": 1e-6} if method in ADAPTIVE else {"step_size": 0.03}
    solve = partial(gradients, make_net(), y0=state(5, 4), method=method, save=save, **options)
    assert relative(solve("checkpoint"), solve("backprop")) < 1e-10


def test_only_a_small_graph_is_kept(make_net, monkeypatch):
    monkeypatch.setattr(retained_graph, "ROOM", 2**14)
    made = []
    monkeypatch.setattr(
        checkpoint,
        "RetainedGraph",
        lambda *args: made.append(retained_graph.RetainedGraph(*args)) or made[-1],
    )
    net = make_net()
    for rows in (5, 50):
        y0 = state(rows, 4).requires_grad_()
        found = fastnode.solve(
            net, y0, times(0, 1), method="dopri5", rtol=1e-8, adjoint="checkpoint"
        )
        found.ys.sum().backward()
        assert found.accepted > 3
    assert 0 < made[0].steps < found.accepted and made[1].steps == 0


@pytest.mark.parametrize("room", [0, 2**30])
def test_a_backward_pass_can_be_asked_for_twice(make_net, monkeypatch, room):
    monkeypatch.setattr(retained_graph, "ROOM", room)
    y0 = state(5, 4).requires_grad_()
    loss = fastnode.solve(make_net(), y0, times(0, 1), adjoint="checkpoint").ys.sin().sum()
    first, second = (torch.autograd.grad(loss, y0, retain_graph=True) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("save", ["steps", "dense"])
@pytest.mark.parametrize("method", ["dopri5", "dopri8", "rk4", "adaptive_heun", "fehlberg2"])
def test_states_and_dense_output_have_gradients(make_net, relative, method, save):
    # Steps of given sizes: chosen ones differ by rounding where times have gradients.
    options = {"steps": 9} if method == "rk4" else steady(method)
    solve = partial(gradients, make_net(), y0=state(5, 4), timed=True, save=save, method=method)
    assert relative(solve("checkpoint", **options), solve("backprop", **options)) < 1e-10


@pytest.mark.parametrize("save", ["times", "steps", "dense"])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_gradients_per_sample(make_net, relative, method, save):
    y0 = state(5, 4) * times(0.1, 0.5, 1, 2, 8)[:, None]
    solve = partial(gradients, make_net(), y0=y0, save=save, method=method, per_sample=True)
    wanted = solve("backprop")
    for adjoint in ("checkpoint", fastnode.Revolve(2)):
        assert relative(solve(adjoint), wanted) < 1e-10


@pytest.mark.parametrize("save", ["times", "steps", "dense"])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_times_have_gradients_per_sample(make_net, relative, method, save):
    # Backprop differentiates times in other operations. Where the estimate of an error is itself of
    # the size of rounding errors, as that of dopri8's first step easily is, steps then differ by
    # some 1e-8, and so do the states at their ends: those are compared on steps of given sizes.
    steps = {} if save == "times" else steady(method)
    y0 = state(5, 4) * times(0.1, 0.5, 1, 2, 8)[:, None]
    solve = partial(
        gradients, make_net(), y0=y0, timed=True, save=save, method=method, per_sample=True, **steps
    )
    wanted = solve("backprop")
    for adjoint in ("checkpoint", fastnode.Revolve(2)):
        assert relative(solve(adjoint), wanted) < 1e-10


def test_each_sample_has_times_and_arguments_of_its_own(make_net, relative):
    net = make_net()

    def run(adjoint):
        y0, w = state(3, 4).requires_grad_(), times(0.5, 1, 2).unsqueeze(1).requires_grad_()
        ts = (times(0, 0.4, 1) * times(1, -1, 2)[:, None]).requires_grad_()
        ys = fastnode.solve(net, y0, ts, args=(w,), per_sample=True, adjoint=adjoint).ys
        return torch.autograd.grad(ys.sin().sum(), [y0, w, ts])

    assert relative(run("checkpoint"), run("backprop")) < 1e-10


@pytest.mark.parametrize("terminal", [True, False])
def test_events_have_gradients(make_net, relative, terminal):
    net = make_net()
    watched = fastnode.Event(lambda t, y: t + 0.01 * y.sum() - 0.6, terminal=terminal)

    def run(adjoint):
        y0 = state(5, 4).requires_grad_()
        found = fastnode.solve(net, y0, times(0, 0.3, 2), events=watched, adjoint=adjoint)
        record = found.events[0]
        assert len(record.times) > 0
        loss = record.times.sum() + record.states.sin().sum()
        return torch.autograd.grad(loss, [y0, net.inner.weight])

    assert relative(run("checkpoint"), run("backprop")) < 1e-10


def test_rejected_steps_cost_nothing_in_the_backward_pass(make_net):
    net = make_net()
    calls = []
    net.register_forward_pre_hook(lambda *_: calls.append(0))
    y0 = state(5, 4).requires_grad_()
    found = fastnode.solve(
        net, y0, times(0, 1), method="dopri5", rtol=1e-6, first_step=1.0, adjoint="checkpoint"
    )
    assert found.rejected > 0 and found.nfe == len(calls)
    found.ys.sum().backward()
    assert len(calls) - found.nfe <= 7 * found.accepted


def test_unused_parameters_get_zero(make_net, discrete):
    net = make_net()
    fastnode.solve(net, state(2, 4), times(0, 1), adjoint=discrete).ys.sum().backward()
    torch.testing.assert_close(net.unused.grad, torch.zeros_like(net.unused))


def test_jvp_through_the_solve(make_net):
    net = make_net()
    y0, v = state(2, 4), state(2, 4).flip(0)

    def run(y, adjoint):
        return fastnode.solve(net, y, times(0, 1), method="rk4", steps=5, adjoint=adjoint).ys[-1]

    for adjoint in ("backprop", "checkpoint", "reversible"):
        _, tangent = torch.func.jvp(partial(run, adjoint=adjoint), (y0,), (v,))
        y = y0.clone().requires_grad_()
        jacobian = torch.autograd.functional.jacobian(partial(run, adjoint=adjoint), y)
        torch.testing.assert_close(tangent, torch.einsum("abcd,cd->ab", jacobian, v))


def test_nothing_is_kept_without_a_gradient(make_net):
    ys = fastnode.solve(make_net(), state(2, 4).requires_grad_(), times(0, 1), adjoint="none").ys
    assert not ys.requires_grad


def test_no_circle_keeps_the_states(make_net, monkeypatch):
    made = []

    class Seen(checkpoint.StepChain):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(weakref.ref(self))

    monkeypatch.setattr(solve_joint, "StepChain", Seen)
    gc.collect()
    gc.disable()
    try:
        found = fastnode.solve(make_net(), state(2, 4), times(0, 1), adjoint="checkpoint")
        assert made[0]() is not None
        del found
        assert made[0]() is None
    finally:
        gc.enable()
