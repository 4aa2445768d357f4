"""Adams methods on even grids, without and with gradients: against torchdiffeq.

Both libraries take the same steps, by the same weights, and as many iterations of the corrector.
"""

from __future__ import annotations

import pytest
import torch
import torchdiffeq
from bench_odeint import DEVICE, SIZES, TOLERANCE, Field, evaluations, initial, solver
from ratio import compare

import fastnode

TIMES = torch.linspace(0.0, 1.0, 33)
#: torchdiffeq's default order makes the explicit method diverge.
OPTIONS = {"explicit_adams": {"max_order": 5}, "implicit_adams": {}, "fixed_adams": {}}


@torch.no_grad()
@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.parametrize("size", SIZES[:3], ids=str)
def test_adams(benchmark, size, method):
    state, hidden, batch = size
    field, y0 = Field(state, hidden), initial(state, batch)
    ours, theirs = (
        solver(lib, y0, TIMES.to(DEVICE), method, OPTIONS[method])
        for lib in (fastnode, torchdiffeq)
    )
    torch.testing.assert_close(ours(field), theirs(field), rtol=1e-4, atol=1e-5)
    compare(
        benchmark,
        method,
        str(size),
        lambda: ours(field),
        {"torchdiffeq": lambda: theirs(field)},
        evaluations={
            "fastnode": evaluations(field, ours),
            "torchdiffeq": evaluations(field, theirs),
        },
    )


@pytest.mark.parametrize("method", OPTIONS)
def test_adams_gradients(benchmark, method):
    state, hidden, batch = size = SIZES[1]
    field, y0 = Field(state, hidden), initial(state, batch).requires_grad_()

    def trained(library):
        def step():
            ys = library.odeint(
                field, y0, TIMES.to(DEVICE), method=method, options=OPTIONS[method], **TOLERANCE
            )
            return torch.autograd.grad(ys[-1].square().sum(), [y0, *field.parameters()])

        return step

    ours, theirs = trained(fastnode), trained(torchdiffeq)
    torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-4)
    compare(benchmark, f"{method}, gradients", str(size), ours, {"torchdiffeq": theirs})
