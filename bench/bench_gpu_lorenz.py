"""A million Lorenz trajectories with per-sample steps, by one Triton kernel and by PyTorch.

The problem is the one that DiffEqGPU.jl's kernels were published with: sigma = 10, beta = 2.666,
rho in [0, 21], from (1, 0, 0) over [0, 1], adaptive tsit5 in float32 with both tolerances 1e-8 and
a first step of 1e-3. The fastest of its runs took 4.66 ms for 2**19 trajectories and 17.84 ms for
2**21 on a Tesla V100, another card than any that this file is for. Source:
github.com/utkarsh530/GPUODEBenchmarks, GPU_ODE_Julia/bench_lorenz_gpu.jl and
paper_artifacts/data/Tesla_V100/Julia/Julia_times_adaptive.txt (Utkarsh et al., Automated
translation and accelerated solving of differential equations on multiple GPU platforms, 2023).
float32 cannot hold that tolerance, so a looser one stands beside it.

The reference is this library's per-sample engine in PyTorch on the same device. TRAJECTORIES sets
their number.
"""

from __future__ import annotations

import os

import pytest
import torch
from ratio import compare

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402, F401 (the interpreter looks for it)

import fastnode  # noqa: E402
from fastnode.control.request import SolveRequest  # noqa: E402
from fastnode.engines.per_sample_trace import Trace  # noqa: E402
from fastnode.engines.select import solve_per_sample  # noqa: E402
from fastnode.problem.batch import make_samples  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() or INTERPRETED), reason="no CUDA device"
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COUNT = int(os.environ.get("TRAJECTORIES", "1000000"))
PUBLISHED = {"Tesla V100, 524288": 4655.955, "Tesla V100, 2097152": 17840.218}


@triton.jit
def lorenz(t, x, y, z, rho):
    return 10.0 * (y - x), rho * x - y - x * z, x * y - 2.666 * z


def lorenz_in_torch(t, state, rho):
    x, y, z = state.unbind(1)
    return torch.stack([10.0 * (y - x), rho * x - y - x * z, x * y - 2.666 * z], dim=1)


def problem(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    y0 = torch.tensor([1.0, 0.0, 0.0], dtype=dtype, device=DEVICE).repeat(COUNT, 1)
    ts = torch.tensor([0.0, 1.0], dtype=torch.float64, device=DEVICE)
    return y0, ts, torch.linspace(0, 21, COUNT, dtype=dtype, device=DEVICE)


def with_torch(tolerance: float, dtype: torch.dtype) -> Trace:
    # Not fastnode.solve, which makes a record of the steps of each sample, a Python object each.
    y0, ts, rho = problem(dtype)
    request = SolveRequest(
        "tsit5",
        tolerance,
        tolerance,
        "reference",
        controller=fastnode.Controller(),
        first_step=1e-3,
    )
    return solve_per_sample(make_samples(lorenz_in_torch, y0, ts, (rho,)), request)


@torch.no_grad()
@pytest.mark.parametrize("tolerance", [1e-8, 1e-5])
def test_lorenz(benchmark, tolerance):
    y0, ts, rho = problem(torch.float32)

    def ours(throw: bool = False) -> fastnode.Trajectories:
        return fastnode.solve_triton(
            lorenz, y0, ts, (rho,), rtol=tolerance, atol=tolerance, first_step=1e-3, throw=throw
        )

    solution = ours(throw=True)
    few = slice(0, COUNT, max(1, COUNT // 1000))
    exact = fastnode.solve(
        lorenz_in_torch,
        y0[few].double(),
        ts,
        args=(rho[few].double(),),
        rtol=1e-11,
        atol=1e-11,
        per_sample=True,
    ).ys[-1]
    theirs = with_torch(tolerance, torch.float32)
    errors = {
        name: (ys[-1, few].double() - exact).abs().max().item()
        for name, ys in (("fastnode", solution.ys), ("PyTorch", theirs.ys))
    }
    assert errors["fastnode"] <= 2 * errors["PyTorch"] + 1e-5
    compare(
        benchmark,
        "Lorenz, tsit5 per sample",
        f"{COUNT}, {tolerance:g}",
        ours,
        {"PyTorch": lambda: with_torch(tolerance, torch.float32)},
        rounds=3,
        warm=1,
        errors=errors,
        evaluations={"fastnode": int(solution.nfe.sum()), "PyTorch": int(theirs.nfe.sum())},
        steps=[int(solution.accepted.min()), int(solution.accepted.max())],
        rejected=int(solution.rejected.sum()),
        published_microseconds=PUBLISHED if tolerance == 1e-8 else {},
    )
