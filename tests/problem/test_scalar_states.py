"""0-dim states: torch gives a product of two scalars the wider dtype, and times are float64."""

from __future__ import annotations

import pytest
import torch

import fastnode
from fastnode.engines.methods import ADAPTIVE, FIXED
from fastnode.tableaus import IMPLICIT

DTYPES = [torch.float32, torch.float16, torch.complex64]
#: As many as make a difference: each has a path of its own.
METHODS = ["dopri5", "dopri8", "rk4", "euler", "explicit_adams", "implicit_adams", *IMPLICIT]


class Watched:
    """-y, which notes the dtypes that it is given."""

    def __init__(self):
        self.times, self.states = set(), set()

    def __call__(self, t, y):
        self.times.add(t.dtype)
        self.states.add(y.dtype)
        return -y * (1 + 0 * t)


def check(field, dtype):
    assert field.times == {dtype.to_real()} and field.states == {dtype}


def start(dtype):
    return torch.tensor(1.0, dtype=dtype)


@pytest.mark.filterwarnings("ignore:.*converge")
@pytest.mark.parametrize("grad", ["nothing", "state", "times"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_func_gets_time_and_state_in_their_dtypes(method, dtype, grad):
    field, y0 = Watched(), start(dtype).requires_grad_(grad == "state")
    t = torch.tensor([0.0, 0.3, 0.5], dtype=torch.float64, requires_grad=grad == "times")
    options = None if method in ADAPTIVE else {"step_size": 0.1}
    ys = fastnode.odeint(field, y0, t, method=method, options=options, rtol=1e-2, atol=1e-2)
    check(field, dtype)
    assert ys.dtype == dtype and ys.shape == (3,)
    assert (ys[-1] - torch.exp(torch.tensor(-0.5))).abs() < 0.1
    if grad != "nothing":
        ys[-1].real.sum().backward()
        found = y0.grad if grad == "state" else t.grad
        assert found is not None and found.isfinite().all()


@pytest.mark.parametrize("interp", ["linear", "cubic"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", FIXED)
def test_events_of_fixed_steps(method, dtype, interp):
    field, t0 = Watched(), torch.tensor(0.0, dtype=torch.float64)
    at, ys = fastnode.odeint_event(
        field,
        start(dtype),
        t0,
        event_fn=lambda t, y: y.real - 0.7,
        odeint_interface=fastnode.odeint,
        method=method,
        options={"step_size": 0.1, "interp": interp},
        rtol=1e-2,
        atol=1e-2,
    )
    check(field, dtype)
    assert ys.dtype == dtype
    assert at.item() == pytest.approx(0.357, abs=0.05)


@pytest.mark.parametrize("interp", ["linear", "cubic"])
def test_outputs_between_steps_keep_the_dtype(interp):
    t = torch.tensor([0.0, 0.25, 0.5], dtype=torch.float64, requires_grad=True)
    for dtype in DTYPES:
        options = {"step_size": 0.1, "interp": interp}
        ys = fastnode.odeint(Watched(), start(dtype), t, method="rk4", options=options)
        assert ys.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", ["rk4", "gl4", "dopri5"])
def test_solve_of_a_scalar(method, dtype):
    field, ts = Watched(), torch.tensor([0.0, 0.5], dtype=torch.float64, requires_grad=True)
    steps = None if method == "dopri5" else 5
    found = fastnode.solve(field, start(dtype), ts, method=method, steps=steps, save="dense")
    check(field, dtype)
    inside = found.evaluate(torch.tensor(0.2, dtype=torch.float64, requires_grad=True))
    assert found.ys.dtype == inside.dtype == dtype
