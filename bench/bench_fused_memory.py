"""Peak memory of the fused engine's forward and backward pass, against torchdiffeq's backprop.

Each is measured in a process of its own, on one thread: the largest resident set above what the
process held before, after a small solve that loads all code. On LONG dopri5 at 1e-5 takes about ten
times the steps that it takes to t = 1.
"""

from __future__ import annotations

import json
import sys

import pytest
import torch
import torchdiffeq
from bench_odeint import TOLERANCE, Field, initial
from memory import in_own_processes, peak_megabytes

import fastnode
from fastnode import extension

SIZES = [(64, 128, 1024), (512, 512, 1024)]
LONG = 16.0


def gradients(name: str, field: torch.nn.Module, y0: torch.Tensor, end: float) -> torch.Tensor:
    y0 = y0.detach().requires_grad_()
    field.zero_grad()
    t = torch.tensor([0.0, end])
    if name == "fastnode":
        ys = fastnode.odeint(fastnode.fuse(field), y0, t, method="dopri5", **TOLERANCE)
        assert ys.grad_fn.name() == "MlpSolveBackward"
    else:
        ys = torchdiffeq.odeint(field, y0, t, method="dopri5", **TOLERANCE)
    ys[-1].square().sum().backward()
    assert y0.grad is not None
    return y0.grad


def measure(name: str, size: tuple[int, int, int], end: float) -> float:
    torch.set_num_threads(1)
    state, hidden, batch = size
    field, y0 = Field(state, hidden), initial(state, batch)
    gradients(name, field, y0[:2], 1.0)
    return peak_megabytes(lambda: gradients(name, field, y0, end))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)
@pytest.mark.parametrize("end", [1.0, LONG])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_memory(benchmark, size, end):
    field, y0 = Field(*size[:2]), initial(size[0], size[2])
    ours, theirs = (gradients(name, field, y0, end) for name in ("fastnode", "torchdiffeq"))
    # As a whole: over LONG single entries differ by what the tolerance allows both solvers.
    assert (ours - theirs).norm() <= 1e-3 * theirs.norm()
    runs = [(name, json.dumps(size), end) for name in ("fastnode", "torchdiffeq")]
    found, rival = in_own_processes(__file__, runs)
    benchmark.pedantic(lambda: None)
    benchmark.extra_info.update(
        subject=f"memory of forward + backward, t = {end:g}",
        case=str(size),
        ratios={"torchdiffeq": rival / found},
        microseconds=0.0,
        megabytes=found,
        reference_megabytes=rival,
    )


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], json.loads(sys.argv[2]), float(sys.argv[3]))))
