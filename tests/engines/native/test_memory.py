"""What Python may do with the C++ loop's memory while it runs, and how it may end it."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

import fastnode
from fastnode import extension

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)


def wave(t, y):
    return torch.sin(3 * t) * y - torch.sin(2 * y)


def start():
    return torch.linspace(-1, 2, 7).double()


def solve(field, y0=None, **options):
    y0 = start() if y0 is None else y0
    times = torch.linspace(0, 2, 5, dtype=torch.float64)
    return fastnode.odeint(field, y0, times, rtol=1e-6, atol=1e-6, **options)


def test_field_may_return_its_argument_or_one_buffer_every_time():
    buffer = torch.empty_like(start())
    one, zero = solve(lambda t, y: y), torch.zeros_like(start())
    torch.testing.assert_close(one[-1], start() * torch.e**2, rtol=1e-5, atol=1e-5)

    def in_buffer(t, y):
        return torch.mul(y, torch.cos(t), out=buffer)

    torch.testing.assert_close(solve(in_buffer), solve(lambda t, y: y * torch.cos(t)))
    assert torch.equal(solve(lambda t, y: zero)[-1], start())


@pytest.mark.parametrize("form", ["tensor", "tuple"])
def test_field_may_keep_what_it_is_given(form):
    kept, copies = [], []

    def field(t, y):
        part = y[0] if form == "tuple" else y
        kept.append((t, y, part[1:]))
        copies.append((t.clone(), part.clone()))
        return (wave(t, part),) if form == "tuple" else wave(t, part)

    solve(field, (start(),) if form == "tuple" else start())
    for (t, y, view), (t_then, y_then) in zip(kept, copies, strict=True):
        now = y[0] if form == "tuple" else y
        assert t == t_then and torch.equal(now, y_then) and torch.equal(view, y_then[1:])


def test_field_may_call_autograd_without_gradients():
    """As the trace of a continuous normalising flow is computed."""

    def field(t, y):
        with torch.enable_grad():
            y.requires_grad_(True)
            return torch.autograd.grad((y**2).sum() / 2, y, create_graph=True)[0]

    with torch.no_grad():
        found = solve(field)
    assert not found.requires_grad
    torch.testing.assert_close(found[-1], start() * torch.e**2, rtol=1e-5, atol=1e-5)


def test_field_exceptions_propagate_and_leak_nothing():
    class Boom(Exception):
        pass

    generator = torch.Generator().manual_seed(0)
    stages = torch.randint(0, 40, (1000,), generator=generator).tolist()

    def failing(stage):
        count = itertools.count()

        def field(t, y):
            if next(count) == stage:
                raise Boom(stage)
            return wave(t, y)

        return field

    def tensors():
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    before = tensors()
    for stage in stages:
        with pytest.raises(Boom, match=str(stage)):
            solve(failing(stage), method="dopri5")
    assert tensors() <= before


@pytest.mark.slow
def test_memory_is_flat_over_many_solves():
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    y0, t = torch.ones(64), torch.tensor([0.0, 0.1])
    for _ in range(1000):
        fastnode.odeint(wave, y0, t, rtol=1e-3, atol=1e-3)
    gc.collect()
    before = resident()
    for _ in range(10_000):
        fastnode.odeint(wave, y0, t, rtol=1e-3, atol=1e-3)
    gc.collect()
    assert resident() - before < 4 << 20


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
def test_control_c_ends_a_solve():
    # A shell starts what runs in the background with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    # From another process: a thread of this one would wait until Python runs again, and the signal
    # then come between two of its instructions, such as those by which coverage takes its lock.
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -INT {os.getpid()}"])
    try:
        with pytest.raises(KeyboardInterrupt):
            fastnode.odeint(
                torch.Tensor.mul, torch.ones(2), torch.tensor([0.0, 1.0]),
                options={"max_step": 1e-8},
            )  # fmt: skip
    finally:
        killer.wait()
        signal.signal(signal.SIGINT, before)


def test_other_threads_run_while_large_states_are_combined():
    ran = []
    stop = threading.Event()

    def other():
        while not stop.is_set():
            ran.append(time.perf_counter())
            time.sleep(0)

    thread = threading.Thread(target=other)
    thread.start()
    # One solve takes 15 ms: the system may not get to the other thread in one.
    for _ in range(50):
        fastnode.odeint(lambda t, y: -y, torch.ones(1 << 18), torch.tensor([0.0, 1.0]))
        if len(ran) > 10:
            break
    stop.set()
    thread.join()
    assert len(ran) > 10
