"""One solve by every engine: what a loop in C++ saves, and what a native field saves besides."""

from __future__ import annotations

import pytest
import torch
from bench_odeint import TIMES, TOLERANCE, Field, initial
from ratio import compare

import fastnode
from fastnode import extension

SIZES = [(2, 16, 1), (2, 64, 32), (64, 128, 128), (64, 128, 1024)]
pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)


@pytest.mark.parametrize("part", ["forward", "forward + backward"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_engines(benchmark, size, part):
    state, hidden, batch = size
    field, y0 = Field(state, hidden), initial(state, batch)
    fields = {"native": field, "reference": field, "fused": fastnode.fuse(field)}

    def solve(engine: str) -> torch.Tensor:
        y = y0.clone().requires_grad_(part != "forward")
        with torch.set_grad_enabled(part != "forward"):
            y1 = fastnode.solve(
                fields[engine], y, TIMES, method="dopri5", engine=engine, **TOLERANCE
            ).ys[-1]
        if part == "forward":
            return y1
        return torch.autograd.grad(y1.square().sum(), [y, *field.parameters()])[0]

    wanted = solve("reference")
    errors = {name: (solve(name) - wanted).abs().max().item() for name in ("native", "fused")}
    assert max(errors.values()) < 1e-4 * (1 + wanted.abs().max())
    compare(
        benchmark,
        f"engines, {part}",
        str(size),
        lambda: solve("native"),
        {name: lambda name=name: solve(name) for name in ("reference", "fused")},
        rounds=5,
        distance_to_reference=errors,
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_adjoints_of_the_fused_engine(benchmark, size):
    """backprop stores all stages, checkpoint recomputes them from the state at each step, and
    Revolve(4) recomputes those states too, from four of them."""
    state, hidden, batch = size
    field, y0 = Field(state, hidden), initial(state, batch)
    fused_field = fastnode.fuse(field)
    options = {"method": "dopri5", "engine": "fused", **TOLERANCE}

    def gradients(adjoint):
        y = y0.clone().requires_grad_()
        y1 = fastnode.solve(fused_field, y, TIMES, adjoint=adjoint, **options).ys[-1]
        return torch.autograd.grad(y1.square().sum(), [y, *field.parameters()])

    others = {"checkpoint": "checkpoint", "revolve(4)": fastnode.Revolve(4)}
    found = gradients("backprop")
    for adjoint in others.values():
        assert all(map(torch.equal, gradients(adjoint), found))
    compare(
        benchmark,
        "adjoints of the fused engine",
        str(size),
        lambda: gradients("backprop"),
        {name: lambda adjoint=adjoint: gradients(adjoint) for name, adjoint in others.items()},
        rounds=10,
    )
