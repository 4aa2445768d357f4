"""Fields that depend on the state not at all, or not in every stage: gradients have no way back."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from adjoint_cases import ADAPTIVE, state, times
from selection import slow

import fastnode
from fastnode import extension
from fastnode.adjoints.continuous.quadrature import Quadrature
from fastnode.adjoints.discrete import checkpoint, retained_graph
from fastnode.tableaus import METHODS

ADJOINTS = ["checkpoint", fastnode.Revolve(1), fastnode.Revolve(3), "reversible", "continuous"]


def clock(t, y, w):
    return torch.cos(t) * torch.ones_like(y)


def weighted_clock(t, y, w):
    return (w * torch.cos(t)).expand_as(y)


def only_late(t, y, w):
    """Of the state from t = 0.5 on."""
    return w * y if t >= 0.5 else torch.ones_like(y)


def gradients(adjoint, field, method, timed, per_sample=False):
    y0, w = state(3, 2).requires_grad_(), times(0.5, 1.5, grad=True)
    t = times(0, 0.4, 1.1, grad=timed)
    options = {} if method in ADAPTIVE else {"step_size": 0.2}
    if adjoint != "backprop":
        options["adjoint_params"] = ()
    ys = fastnode.solve(
        field, y0, t, method=method, args=(w,), adjoint=adjoint, per_sample=per_sample, **options
    ).ys
    wanted = [y0, w, t] if timed else [y0, w]
    found = torch.autograd.grad(ys.sin().sum(), wanted, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, found, strict=True)]


@pytest.mark.parametrize("small", [0, 2**30], ids=["by stage", "by step"])
@pytest.mark.parametrize("room", [0, 2**30], ids=["taken again", "graph kept"])
@pytest.mark.parametrize("method", ["rk4", slow("dopri5"), "adaptive_heun"])
@pytest.mark.parametrize("field", [clock, weighted_clock, only_late])
@pytest.mark.parametrize("adjoint", ADJOINTS[:3], ids=str)
def test_discrete_gradients_are_those_of_backprop(monkeypatch, adjoint, field, method, room, small):
    monkeypatch.setattr(retained_graph, "ROOM", room)
    monkeypatch.setattr(checkpoint, "SMALL", small)
    for timed in (False, True):
        run = partial(gradients, field=field, method=method, timed=timed)
        torch.testing.assert_close(run(adjoint), run("backprop"), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("field", [clock, weighted_clock])
@pytest.mark.parametrize("adjoint", ADJOINTS[3:])
def test_other_gradients_come_near_them(adjoint, field):
    run = partial(gradients, field=field, method="dopri5", timed=False)
    torch.testing.assert_close(run(adjoint), run("backprop"), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("field", [clock, weighted_clock])
def test_the_continuous_adjoint_needs_no_kernel_for_them(monkeypatch, field, native):
    monkeypatch.setattr(extension, "AVAILABLE", native and extension.AVAILABLE)
    run = partial(gradients, field=field, method="dopri5", timed=False)
    torch.testing.assert_close(run("continuous"), run("backprop"), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["dopri5", "adaptive_heun"])
def test_gradients_per_sample_are_those_of_backprop(method):
    def field(t, y, w):
        return w * torch.cos(t)[:, None].expand_as(y)

    run = partial(gradients, field=field, method=method, timed=False, per_sample=True)
    torch.testing.assert_close(run("checkpoint"), run("backprop"), rtol=1e-10, atol=1e-12)


def test_a_parameter_that_no_stage_needed_has_no_error():
    quadrature = Quadrature([torch.ones(3)])
    quadrature.follow(METHODS["dopri5"], errors=True)
    quadrature.evaluated([None])
    quadrature.begin(0.1)
    for _ in range(6):
        quadrature.evaluated([None])
    assert quadrature.error_norm([1e-3], [1e-3]) == 0
    quadrature.accept()
    assert quadrature.totals[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("timed", [False, True])
def test_a_derivative_carried_on_from_a_field_without_gradient(per_sample, timed):
    def field(t, y, w):
        return torch.ones_like(y)

    run = partial(
        gradients, field=field, method="adaptive_heun", timed=timed, per_sample=per_sample
    )
    torch.testing.assert_close(run("checkpoint"), run("backprop"), rtol=1e-10, atol=1e-12)
