"""Loops in C++ notice signals while they run: handlers run, and what they raise ends the solve."""

from __future__ import annotations

import signal
import threading
import time

import pytest
import torch

import fastnode
from fastnode.extension import AVAILABLE
from fastnode.nn import MLPField

pytestmark = [
    pytest.mark.skipif(not AVAILABLE, reason="needs the extension"),
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer"),
    pytest.mark.skipif(
        threading.current_thread() is not threading.main_thread(),
        reason="signals are handled in the main thread",
    ),
]
#: Seconds of a solve in which a timer of a twentieth of a second is noticed more than once.
LONG = 0.6
MANY = 2**31 - 1


def field():
    torch.manual_seed(0)
    return MLPField(8, 32, 2, "tanh", "none")


def times(steps):
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


def fixed(steps, y0):
    ts = times(steps)[[0, -1]].float()
    return lambda: fastnode.odeint(
        field(), y0, ts, method="rk4", options={"step_size": 1.0 / steps}, engine="fused"
    )


def adaptive(steps, y0):
    control = fastnode.Controller(max_step=1.0 / steps)
    ts = times(steps)[[0, -1]]
    return lambda: fastnode.solve(
        field(), y0, ts, controller=control, engine="fused", max_num_steps=MANY
    )


def per_sample(steps, y0):
    control = fastnode.Controller(max_step=1.0 / steps)
    ts = times(steps)[[0, -1]]
    return lambda: fastnode.solve(
        field(), y0, ts, controller=control, engine="fused", per_sample=True, max_num_steps=MANY
    )


def backward(adjoint, samples=False):
    def make(steps, y0):
        control = fastnode.Controller(max_step=1.0 / steps)
        ts = times(steps)[[0, -1]]
        start = y0.clone().requires_grad_()
        found = fastnode.solve(
            field(),
            start,
            ts,
            controller=control,
            adjoint=adjoint,
            per_sample=samples,
            engine="fused",
            max_num_steps=MANY,
        )
        return lambda: torch.autograd.grad(found.ys.sum(), start, retain_graph=True)

    return make


CASES = {
    "fixed": fixed,
    "adaptive": adaptive,
    "per_sample": per_sample,
    "checkpoint": backward("checkpoint"),
    "revolve": backward(fastnode.Revolve(2)),
    "per_sample_backward": backward("checkpoint", samples=True),
}


def long_enough(make):
    """A call of ``make`` that takes a while."""
    y0 = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    steps = 1000
    while True:
        call = make(steps, y0)
        start = time.perf_counter()
        call()
        taken = time.perf_counter() - start
        if taken > LONG:
            return call
        steps = int(steps * min(10.0, 1.5 * LONG / taken))


class Timer:
    """Calls ``handle`` every twentieth of a second."""

    def __init__(self, handle):
        self.handle = handle

    def __enter__(self):
        self.before = signal.signal(signal.SIGALRM, lambda *_: self.handle())
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)

    def __exit__(self, *_):
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.before)


class Stop(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_handlers_run_during_fused_loops(case):
    call = long_enough(CASES[case])
    calls = []
    with Timer(lambda: calls.append(None)):
        call()
    # A loop that never looks has one call, after its end.
    assert len(calls) > 2

    def stop():
        calls.append(None)
        if len(calls) == 1:
            raise Stop

    calls.clear()
    with pytest.raises(Stop), Timer(stop):
        call()
    # And the next solve is none the worse.
    call()
