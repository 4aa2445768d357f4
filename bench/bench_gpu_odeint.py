"""Whole solves on a GPU by each engine, against torchdiffeq on the same GPU.

The field is Linear - tanh - Linear, tolerance 1e-5, dopri5. ``host_waits`` counts how often one
solve makes the host wait for the device, as the profiler sees it.
"""

from __future__ import annotations

import pytest
import torch
import torchdiffeq
from bench_odeint import TIMES, TOLERANCE, Field, evaluations, initial, solver
from ratio import compare

import fastnode
from fastnode.control.controllers import find_controller
from fastnode.control.request import SolveRequest
from fastnode.engines.select import NAMES, solve_per_sample
from fastnode.problem.batch import make_samples, sample_tolerances

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
# (state, hidden, batch): overhead alone, both, both with more weights than shared memory holds,
# arithmetic alone.
SIZES = [(2, 64, 128), (64, 128, 1024), (512, 512, 1024), (512, 512, 8192)]
ENGINES = [name for name in ("native", "graph", "fused") if name in NAMES]
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def host_waits(run) -> int:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    run()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        run()
    # The profiler itself waits once in the end.
    return max(0, sum(event.name in WAITS for event in profile.events()) - 1)


@torch.no_grad()
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_solve(benchmark, size, engine):
    state, hidden, batch = size
    module, y0 = Field(state, hidden), initial(state, batch)
    field = fastnode.fuse(module) if engine == "fused" else module

    def ours():
        solution = fastnode.solve(field, y0, TIMES, method="dopri5", engine=engine, **TOLERANCE)
        return solution.ys[-1]

    def theirs():
        return torchdiffeq.odeint(module, y0, TIMES, method="dopri5", **TOLERANCE)[-1]

    try:
        found = ours()
    except ValueError as error:
        pytest.skip(f"engine {engine!r}: {error}")
    torch.testing.assert_close(found, theirs(), rtol=1e-3, atol=1e-3)
    waits = host_waits(ours)
    compare(
        benchmark,
        f"odeint on a GPU, {engine}",
        str(size),
        ours,
        {"torchdiffeq": theirs},
        rounds=6,
        budget=0.05,
        host_waits=waits,
        evaluations={
            "fastnode": fastnode.solve(module, y0, TIMES, method="dopri5", **TOLERANCE).nfe,
            "torchdiffeq": evaluations(module, solver(torchdiffeq, y0, TIMES)),
        },
    )


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES[1:], ids=str)
def test_tensor_cores(benchmark, size):
    """Both at the precision "high": the fused engine's three products for one, torch's TF32."""
    state, hidden, batch = size
    module, y0 = Field(state, hidden), initial(state, batch)
    field = fastnode.fuse(module)

    def at(precision, call):
        def run():
            torch.set_float32_matmul_precision(precision)
            try:
                return call()
            finally:
                torch.set_float32_matmul_precision("highest")

        return run

    def fused():
        solution = fastnode.solve(field, y0, TIMES, method="dopri5", engine="fused", **TOLERANCE)
        return solution.ys[-1]

    def theirs():
        return torchdiffeq.odeint(module, y0, TIMES, method="dopri5", **TOLERANCE)[-1]

    try:
        found = at("high", fused)()
    except ValueError as error:
        pytest.skip(f"engine 'fused': {error}")
    torch.testing.assert_close(found, theirs(), rtol=1e-3, atol=1e-3)
    references = {"threads": at("highest", fused), "torchdiffeq": at("high", theirs)}
    compare(
        benchmark,
        "odeint on a GPU, fused by tensor cores",
        str(size),
        at("high", fused),
        references,
        rounds=6,
        budget=0.05,
    )


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_fixed_steps(benchmark, size):
    state, hidden, batch = size
    module, y0 = Field(state, hidden), initial(state, batch)
    options = {"step_size": 0.05}

    def ours():
        return fastnode.odeint(module, y0, TIMES, method="rk4", options=options)[-1]

    def theirs():
        return torchdiffeq.odeint(module, y0, TIMES, method="rk4", options=options)[-1]

    torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-3)
    compare(
        benchmark,
        "rk4 on a GPU, native",
        str(size),
        ours,
        {"torchdiffeq": theirs},
        rounds=6,
        budget=0.05,
        host_waits=host_waits(ours),
    )


@torch.no_grad()
def test_a_million_trajectories(benchmark):
    """Per-sample steps of tsit5, from random states of three numbers."""
    torch.manual_seed(0)
    field = fastnode.nn.MLPField(3, 32, 2, "tanh", "none").cuda()
    y0 = torch.randn(1_000_000, 3, device="cuda")
    times = TIMES.to("cuda", torch.float64)
    control = find_controller("I")

    def solve(engine):
        # What fastnode.solve does before it makes a list of a million records.
        problem = make_samples(field, y0, times, ())
        tolerances = sample_tolerances(1e-5, 1e-5, problem.y0)
        request = SolveRequest(
            "tsit5", tolerances.rtol, tolerances.atol, engine, controller=control
        )
        return solve_per_sample(problem, request)

    found, wanted = solve("fused"), solve("native")
    torch.testing.assert_close(found.ys, wanted.ys, rtol=1e-3, atol=1e-3)
    compare(
        benchmark,
        "tsit5 per sample on a GPU, fused",
        "1e6 x 3",
        lambda: solve("fused"),
        {"native": lambda: solve("native")},
        rounds=4,
        budget=0.05,
        host_waits=host_waits(lambda: solve("fused")),
        evaluations={"fastnode": int(found.nfe.sum()), "native": int(wanted.nfe.sum())},
    )
