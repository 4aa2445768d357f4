"""Gradients: time of every adjoint, with the gradient's error in the same row.

The field is Linear - tanh - Linear. Times are of one forward and backward pass against
torchdiffeq's, interleaved. Memory is measured in bench_work.py.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import pytest
import torch
import torchdiffeq
from bench_odeint import Field, initial
from ratio import compare

import fastnode

SIZES = [(2, 64, 32), (64, 128, 128), (256, 256, 256)]
TOLERANCE = {"method": "dopri5", "rtol": 1e-5, "atol": 1e-5}
ADJOINTS = {
    "backprop": "backprop",
    "checkpoint": "checkpoint",
    "revolve(4)": fastnode.Revolve(4),
    "reversible": "reversible",
    "continuous": "continuous",
}


def gradients(name: str, field: torch.nn.Module, y0: torch.Tensor, end: float) -> list:
    """Of the sum of squares of the state at the end by y0 and by the parameters."""
    y0 = y0.detach().requires_grad_()
    t = torch.tensor([0.0, end])
    if name == "torchdiffeq backprop":
        y1 = torchdiffeq.odeint(field, y0, t, **TOLERANCE)[-1]
    elif name == "torchdiffeq adjoint":
        y1 = torchdiffeq.odeint_adjoint(field, y0, t, **TOLERANCE)[-1]
    else:
        y1 = fastnode.solve(field, y0, t, adjoint=ADJOINTS[name], **TOLERANCE).ys[-1]
    return list(torch.autograd.grad(y1.square().sum(), [y0, *field.parameters()]))


@cache
def exact(size: tuple[int, int, int]) -> list[torch.Tensor]:
    """The gradients of a far more accurate solve in float64."""
    state, hidden, batch = size
    field, y0 = Field(state, hidden).double(), initial(state, batch).double().requires_grad_()
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    y1 = fastnode.solve(field, y0, t, method="dopri8", rtol=1e-9, atol=1e-9).ys[-1]
    return list(torch.autograd.grad(y1.square().sum(), [y0, *field.parameters()]))


def error(name: str, size: tuple[int, int, int]) -> float:
    """Largest relative distance to the exact gradient."""
    state, hidden, batch = size
    found = gradients(name, Field(state, hidden), initial(state, batch), 1.0)
    pairs = zip(found, exact(size), strict=True)
    return max(((a.double() - b).norm() / b.norm()).item() for a, b in pairs)


@pytest.mark.parametrize(
    ("adjoint", "size"),
    # One sample of a large field: where parameters integrated inside the state cost most.
    [*product(ADJOINTS, SIZES), ("continuous", (512, 512, 1))],
    ids=str,
)
def test_gradient(benchmark, adjoint, size):
    state, hidden, batch = size
    field, y0 = Field(state, hidden), initial(state, batch)
    rival = "torchdiffeq adjoint" if adjoint == "continuous" else "torchdiffeq backprop"
    names = [rival] if adjoint == "backprop" else [rival, "backprop"]
    compare(
        benchmark,
        f"gradient, {adjoint}",
        str(size),
        lambda: gradients(adjoint, field, y0, 1.0),
        {name: lambda name=name: gradients(name, field, y0, 1.0) for name in names},
        rounds=3 if size == SIZES[-1] else 10,
        warm=1 if size == SIZES[-1] else 3,
        errors={name: error(name, size) for name in (adjoint, *names)},
    )
