from __future__ import annotations

import math

import pytest
import torch
import torchdiffeq

import fastnode

ADAPTIVE = ["dopri5", "tsit5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"]


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def swing(t, y):
    return y * torch.cos(t)


def solution(t):
    return torch.exp(torch.sin(t))


@pytest.mark.parametrize("method", ADAPTIVE)
def test_odeint_dense_is_accurate_between_steps(method):
    dense = fastnode.odeint_dense(
        swing, torch.ones(2, 3).double(), 0.0, 2.0, method=method, rtol=1e-6, atol=1e-6
    )
    t = torch.linspace(0, 2, 41, dtype=torch.float64)
    wanted = solution(t)[:, None, None].expand(41, 2, 3)
    torch.testing.assert_close(dense(t), wanted, rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(dense(t[7]), wanted[7], rtol=2e-4, atol=2e-4)


def test_agrees_with_torchdiffeq_at_one_time():
    y0, ends = vector(1.0, 2.0), (torch.tensor(0.3), torch.tensor(2.0))
    ours = fastnode.odeint_dense(swing, y0, *ends, rtol=1e-6, atol=1e-6)
    theirs = torchdiffeq.odeint_dense(swing, y0, *ends, rtol=1e-6, atol=1e-6)
    for t in (torch.tensor(0.3), torch.tensor(1.1), 1.7):
        torch.testing.assert_close(ours(t), theirs(t), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_agrees_with_the_outputs_of_odeint(method):
    t = torch.linspace(0, 2, 9, dtype=torch.float64)
    y0, tolerance = vector(1.0), {"rtol": 1e-5, "atol": 1e-5, "method": method}
    dense = fastnode.odeint_dense(swing, y0, t[0], t[-1], **tolerance)
    torch.testing.assert_close(dense(t), fastnode.odeint(swing, y0, t, **tolerance))


def test_times_may_have_any_shape_and_go_backwards():
    dense = fastnode.odeint_dense(swing, vector(1.0), 0.0, -2.0)
    t = -torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(dense(t)[..., 0], solution(t.double()), rtol=1e-6, atol=1e-6)
    assert dense.times[0] == 0 and dense.times[-1] == -2 and dense(-1).shape == (1,)
    assert torch.equal(dense(torch.tensor(-1)), dense(-1))


def test_tuple_states_stay_tuples():
    dense = fastnode.odeint_dense(
        lambda t, y: (swing(t, y[0]), -y[1]), (vector(1.0), torch.ones(2, 1)), 0.0, 1.0
    )
    one, many = dense(0.5), dense(vector(0.1, 0.5, 1.0))
    assert [part.shape for part in one] == [(1,), (2, 1)]
    assert [part.shape for part in many] == [(3, 1), (3, 2, 1)]
    torch.testing.assert_close(one[1], torch.full((2, 1), math.exp(-0.5)).double())


def test_the_ends_are_inside_in_any_precision():
    dense = fastnode.odeint_dense(swing, vector(1.0), 0.1, 0.7)
    for t in (0.1, 0.7):
        torch.testing.assert_close(dense(torch.tensor(t)), dense(t))


def test_gradients_reach_times_and_states():
    y0, rate = vector(1.0).requires_grad_(), vector(-0.5).requires_grad_()

    def end(y0, rate, t):
        dense = fastnode.odeint_dense(
            lambda t, y: rate * y, y0, 0.0, 1.0, options={"first_step": 0.2, "max_step": 0.2}
        )
        return dense(t)

    t = vector(0.13, 0.9).requires_grad_()
    assert torch.autograd.gradcheck(end, (y0, rate, t), atol=1e-5)
    (derivative,) = torch.autograd.grad(end(y0, rate, t).sum(), t)
    torch.testing.assert_close(
        derivative, -0.5 * torch.exp(-0.5 * t.detach()), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("t", [-0.01, 1.01, math.nan, math.inf])
def test_times_outside_are_refused(t):
    dense = fastnode.odeint_dense(swing, vector(1.0), 0.0, 1.0)
    for kind in (ValueError, AssertionError):
        with pytest.raises(kind, match="t must be between 0 and 1, got"):
            dense(vector(0.5, t))


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"method": "rk4"}, ValueError, "method must be one of .* for dense output"),
        ({"method": "rk4"}, AssertionError, "method must be one of .* for dense output"),
        ({"method": "odd"}, ValueError, "method must be one of"),
        ({"t0": "now"}, TypeError, "t0 must be a number, got str"),
        ({"t1": vector(1.0, 2.0)}, ValueError, "t1 must be one time"),
        ({"t1": 0.0}, ValueError, "t must be strictly increasing or decreasing"),
    ],
    ids=lambda value: None,
)
def test_bad_arguments_are_named(change, kind, words):
    arguments = {"y0": vector(1.0), "t0": 0.0, "t1": 1.0, **change}
    with pytest.raises(kind, match=words):
        fastnode.odeint_dense(swing, **arguments)


def test_what_is_no_time_is_refused():
    dense = fastnode.odeint_dense(swing, vector(1.0), 0.0, 1.0)
    with pytest.raises(TypeError, match="t must be real"):
        dense(torch.tensor(1j))
    with pytest.raises(ValueError, match="t must hold at least one time"):
        dense(vector())


def test_torch_compile_breaks_the_graph_at_odeint_dense():
    def end(y0):
        return fastnode.odeint_dense(swing, 2 * y0, 0.0, 1.0)(0.5).sum() + 1

    y0 = vector(1.0)
    compiled = torch.compile(end, backend="eager")
    torch.testing.assert_close(compiled(y0), end(y0))
    assert torch._dynamo.explain(end)(y0).graph_break_count <= 2


@pytest.mark.parametrize("as_tuple", [True, False])
def test_odeint_dense_keeps_its_own_y0(as_tuple):
    y0 = vector(1.0, 2.0)

    def field(t, y):
        return (swing(t, y[0]),) if as_tuple else swing(t, y)

    dense = fastnode.odeint_dense(field, (y0,) if as_tuple else y0, 0.0, 2.0)
    at = vector(0.0, 0.01, 1.5)
    before = (dense(at)[0] if as_tuple else dense(at)).clone()
    y0.mul_(10)
    after = dense(at)[0] if as_tuple else dense(at)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
