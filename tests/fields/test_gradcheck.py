"""Gradients of compiled fields against finite differences in float64, by every adjoint."""

from __future__ import annotations

import pytest
import torch
from field_zoo import FIELDS
from selection import slow

import fastnode

pytestmark = pytest.mark.skipif(not fastnode.extension.AVAILABLE, reason="no C++ extension")

#: So tight that differences see the solution, not its steps.
TIGHT = {"method": "dopri5", "rtol": 1e-11, "atol": 1e-12, "engine": "fused"}
KINDS = ["hypernetwork", slow("exact trace"), slow("message passing")]


def made(name, batch):
    build, shape = FIELDS[name]
    torch.manual_seed(0)
    module = build().double()
    y0 = (0.5 * torch.randn(batch, *shape, dtype=torch.float64)).requires_grad_()
    return fastnode.compile_field(module, y0), y0


def check(solve, compiled, *inputs):
    held = [x for x in compiled.parameters() if x.requires_grad]
    # It alters parameters in place, where the code reads them.
    assert torch.autograd.gradcheck(
        lambda *given: solve(*given[: len(inputs)]), (*inputs, *held), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("adjoint", ["backprop", "checkpoint", slow(fastnode.Revolve(2))], ids=str)
@pytest.mark.parametrize("batch", [1, slow(5)])
@pytest.mark.parametrize("name", KINDS)
def test_gradients_are_those_of_finite_differences(name, batch, adjoint):
    compiled, y0 = made(name, batch)
    ts = torch.tensor([0.0, 0.3, 0.5], dtype=torch.float64, requires_grad=True)

    def solve(y0, ts):
        return fastnode.solve(compiled, y0, ts, adjoint=adjoint, **TIGHT).ys

    check(solve, compiled, y0, ts)


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", ["backprop", "checkpoint"])
@pytest.mark.parametrize("batch", [2, 5])
@pytest.mark.parametrize("name", ["hypernetwork", "exact trace", "rows of times"])
def test_gradients_of_per_sample_solves(name, batch, adjoint):
    compiled, y0 = made(name, batch)
    ts = torch.tensor([0.0, 0.3, 0.5], dtype=torch.float64)
    ts = ts * (1 + torch.arange(batch)[:, None] / batch)

    def solve(y0):
        return fastnode.solve(compiled, y0, ts, adjoint=adjoint, per_sample=True, **TIGHT).ys

    check(solve, compiled, y0)


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", ["backprop", "checkpoint", fastnode.Revolve(2)], ids=str)
@pytest.mark.parametrize("name", ["max pooling", "sorting", "dilated groups"])
def test_gradients_of_fixed_steps(name, adjoint):
    compiled, y0 = made(name, 5)
    ts = torch.tensor([0.0, 0.5], dtype=torch.float64)

    def solve(y0):
        options = {"method": "rk4", "steps": 3, "engine": "fused"}
        return fastnode.solve(compiled, y0, ts, adjoint=adjoint, **options).ys

    check(solve, compiled, y0)
