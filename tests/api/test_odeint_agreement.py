from __future__ import annotations

import pytest
import torch
import torchdiffeq
from odeint_cases import TIMES, Net, grid, state

import fastnode

SHARED = ["euler", "midpoint", "rk4", "dopri5"]


def fewer_by_whole_steps(ours, theirs):
    """torchdiffeq's last step goes beyond the end, where it may be rejected; ours ends there and is
    shorter, so a rejection less (six evaluations) can be the only difference."""
    return ours <= theirs and (theirs - ours) % 6 == 0 and theirs - ours <= 12


@pytest.mark.parametrize("t", TIMES.values(), ids=TIMES)
@pytest.mark.parametrize("method", SHARED)
def test_agrees_with_torchdiffeq_in_values_and_evaluations(method, t):
    net, y0 = Net(), state(5, 4)
    ours = fastnode.odeint(net, y0, t, method=method, rtol=1e-6, atol=1e-8)
    nfe, net.nfe = net.nfe, 0
    theirs = torchdiffeq.odeint(net, y0, t, method=method, rtol=1e-6, atol=1e-8)
    tolerance = 1e-5 if method == "dopri5" else 1e-12
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    # torchdiffeq evaluates twice to choose a first step that a single time never takes.
    assert nfe == 0 if len(t) == 1 else fewer_by_whole_steps(nfe, net.nfe)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
def test_takes_the_steps_of_torchdiffeq_but_for_the_last_one(tolerance):
    net, y0, seen = Net(), state(5, 4), []

    def field(t, y):
        seen.append(t.item())
        return net(t, y)

    fastnode.odeint(field, y0, grid(0.0, 3.0), rtol=tolerance, atol=tolerance)
    ours = seen.copy()
    seen.clear()
    torchdiffeq.odeint(field, y0, grid(0.0, 3.0), rtol=tolerance, atol=tolerance)
    assert fewer_by_whole_steps(len(ours), len(seen))
    common = len(ours) - 6
    assert ours[:common] == pytest.approx(seen[:common], rel=1e-6)


def test_tolerances_as_tensors_agree_with_torchdiffeq():
    net, y0, t = Net(), state(3, 4), TIMES["two"]
    rtol, atol = torch.tensor(1e-6), torch.full((3, 4), 1e-7, dtype=torch.float64)
    atol[0] = 1e-3
    ours = fastnode.odeint(net, y0, t, rtol=rtol, atol=atol)
    nfe, net.nfe = net.nfe, 0
    theirs = torchdiffeq.odeint(net, y0, t, rtol=rtol, atol=atol)
    assert fewer_by_whole_steps(nfe, net.nfe)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", SHARED)
def test_complex_states_agree_with_torchdiffeq(method):
    y0 = state(3, dtype=torch.complex128)
    calls = []

    def field(t, y):
        calls.append(t.dtype)
        return 1j * y * t

    ours = fastnode.odeint(field, y0, TIMES["forward"], method=method)
    nfe = len(calls)
    theirs = torchdiffeq.odeint(field, y0, TIMES["forward"], method=method)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert fewer_by_whole_steps(nfe, len(calls) - nfe) and set(calls) == {torch.float64}


@pytest.mark.parametrize("method", SHARED)
def test_tuple_states(method):
    def pendulum(t, y):
        return y[1], -torch.sin(y[0])

    y0 = (state(2, 3), state(2, 3) * 0.1)
    t = TIMES["forward"]
    ours = fastnode.odeint(pendulum, y0, t, method=method)
    theirs = torchdiffeq.odeint(pendulum, y0, t, method=method)
    assert isinstance(ours, tuple)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_same_input_gives_the_same_bits():
    net, y0 = Net(dtype=torch.float32), state(50, 4, dtype=torch.float32)
    first, second = (fastnode.odeint(net, y0, TIMES["two"]) for _ in range(2))
    assert torch.equal(first, second)
