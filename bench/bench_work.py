"""Error over time, memory over the interval, and ratios over state and batch: the reports' plots.

The field is Linear - tanh - Linear, called from Python but for "fused". ``--full`` takes a finer
grid of states and batches. Memory is the largest resident set of a process of its own above what it
held before, after a small solve that loads all code.
"""

from __future__ import annotations

import json
import sys

import pytest
import torch
import torchdiffeq
from bench_gradients import ADJOINTS, gradients
from bench_odeint import TIMES, TOLERANCE, Field, initial
from memory import in_own_processes, peak_megabytes
from ratio import compare

import fastnode

SIZE = (64, 128, 128)
MEMORY_SIZE, ENDS = (64, 128, 1024), (1.0, 4.0, 16.0)


@torch.no_grad()
@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7, 1e-9])
@pytest.mark.parametrize("method", ["dopri5", "dopri8"])
def test_error_over_time(benchmark, method, tolerance):
    state, hidden, batch = SIZE
    # A field that makes solvers work: ten times as steep as a new network.
    field, y0 = Field(state, hidden).double(), initial(state, batch).double()
    field.net[2].weight.mul_(10)
    t = TIMES.double()
    exact = fastnode.odeint(field, y0, t, method="dopri8", rtol=1e-12, atol=1e-12)[-1]
    options = {"method": method, "rtol": tolerance, "atol": tolerance}
    fused_field = fastnode.fuse(field)
    calls = {
        "fastnode": lambda: fastnode.odeint(field, y0, t, **options)[-1],
        "fastnode, fused": lambda: fastnode.odeint(fused_field, y0, t, **options)[-1],
        "torchdiffeq": lambda: torchdiffeq.odeint(field, y0, t, **options)[-1],
    }
    errors = {name: (call() - exact).abs().max().item() for name, call in calls.items()}
    for error in errors.values():
        assert error < 1e4 * tolerance
    ours = calls.pop("fastnode")
    compare(
        benchmark,
        f"error over time, {method}",
        f"{tolerance:g}",
        ours,
        calls,
        rounds=5,
        errors=errors,
    )


def pytest_generate_tests(metafunc):
    if "state" in metafunc.fixturenames:
        full = metafunc.config.getoption("--full")
        states = (1, 2, 8, 32, 64, 128, 256, 512) if full else (2, 16, 64, 256)
        batches = (1, 8, 32, 128, 512, 2048) if full else (1, 32, 1024)
        metafunc.parametrize("batch", batches)
        metafunc.parametrize("state", states)


@torch.no_grad()
def test_state_and_batch(benchmark, state, batch):
    """A hidden layer of 64, dopri5 at 1e-5."""
    field, y0 = Field(state, 64), initial(state, batch)
    fused_field = fastnode.fuse(field)
    calls = {
        "torchdiffeq": lambda: torchdiffeq.odeint(field, y0, TIMES, **TOLERANCE)[-1],
        "native": lambda: fastnode.odeint(field, y0, TIMES, **TOLERANCE)[-1],
    }

    def ours():
        return fastnode.odeint(fused_field, y0, TIMES, **TOLERANCE)[-1]

    torch.testing.assert_close(ours(), calls["torchdiffeq"](), rtol=1e-3, atol=1e-3)
    compare(benchmark, "state and batch, fused", f"({state}, {batch})", ours, calls, rounds=3)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("name", ["torchdiffeq backprop", *ADJOINTS])
def test_memory_over_interval(benchmark, name):
    values = in_own_processes(__file__, [(name, end) for end in ENDS])
    benchmark.pedantic(lambda: None)
    benchmark.extra_info.update(
        subject="memory over interval",
        case=name,
        ratios={},
        microseconds=0.0,
        megabytes={f"t = {end:g}": value for end, value in zip(ENDS, values, strict=True)},
    )


def measure(name: str, end: float) -> float:
    torch.set_num_threads(1)
    state, hidden, batch = MEMORY_SIZE
    field, y0 = Field(state, hidden), initial(state, batch)
    gradients(name, field, y0[:2], 1.0)
    return peak_megabytes(lambda: gradients(name, field, y0, end))


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], float(sys.argv[2]))))
