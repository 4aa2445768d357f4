"""Gradients: time and memory of every adjoint, with the gradient's error in the same row.

The field is Linear - tanh - Linear. Times are of one forward and backward pass against
torchdiffeq's, interleaved. Memory, at the largest size, is the largest resident set of a process of
its own above what it held before, after a small solve that loads all code; LONG is the interval on
which dopri5 at 1e-5 takes 62 evaluations there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import cache
from itertools import product

import pytest
import torch
import torchdiffeq
from bench_odeint import Field, initial
from memory import in_own_processes, peak_megabytes
from ratio import compare

import fastnode

SIZES = [(2, 64, 32), (64, 128, 128), (512, 512, 1024)]
LARGEST, LONG = SIZES[-1], 16.0
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
def exact(size: tuple[int, int, int], end: float) -> list[torch.Tensor]:
    """The gradients of a far more accurate solve in float64."""
    state, hidden, batch = size
    field, y0 = Field(state, hidden).double(), initial(state, batch).double().requires_grad_()
    t = torch.tensor([0.0, end], dtype=torch.float64)
    y1 = fastnode.solve(field, y0, t, method="dopri8", rtol=1e-9, atol=1e-9).ys[-1]
    return list(torch.autograd.grad(y1.square().sum(), [y0, *field.parameters()]))


def error(name: str, size: tuple[int, int, int], end: float = 1.0) -> float:
    """Largest relative distance to the exact gradient."""
    state, hidden, batch = size
    found = gradients(name, Field(state, hidden), initial(state, batch), end)
    pairs = zip(found, exact(size, end), strict=True)
    return max(((a.double() - b).norm() / b.norm()).item() for a, b in pairs)


@pytest.fixture(scope="module")
def memory() -> dict[tuple[str, float], float]:
    """Megabytes by name and interval."""
    if not sys.platform.startswith("linux"):
        return {}
    runs = [(name, 4 * LONG) for name in ("reversible", "revolve(4)")]
    runs += [(name, LONG) for name in ("torchdiffeq backprop", *ADJOINTS)]
    return dict(sorted(zip(runs, megabytes(runs, LARGEST), strict=True)))


@pytest.mark.parametrize(
    ("adjoint", "size"),
    # One sample of a large field: where parameters integrated inside the state cost most.
    [*product(ADJOINTS, SIZES), ("continuous", (512, 512, 1))],
    ids=str,
)
def test_gradient(benchmark, request, adjoint, size):
    state, hidden, batch = size
    field, y0 = Field(state, hidden), initial(state, batch)
    rival = "torchdiffeq adjoint" if adjoint == "continuous" else "torchdiffeq backprop"
    names = [rival] if adjoint == "backprop" else [rival, "backprop"]
    measured = request.getfixturevalue("memory") if size == LARGEST else {}
    compare(
        benchmark,
        f"gradient, {adjoint}",
        str(size),
        lambda: gradients(adjoint, field, y0, 1.0),
        {name: lambda name=name: gradients(name, field, y0, 1.0) for name in names},
        rounds=2 if size == LARGEST else 10,
        warm=1 if size == LARGEST else 3,
        errors={name: error(name, size) for name in (adjoint, *names)},
        megabytes={
            f"{name}, t = {end:g}": value
            for (name, end), value in measured.items()
            if name in (adjoint, "torchdiffeq backprop")
        },
    )


def megabytes(runs: Sequence[tuple[str, float]], size: tuple[int, int, int]) -> list[float]:
    """For each name and interval, measured in a process of its own."""
    return in_own_processes(__file__, [(name, end, json.dumps(size)) for name, end in runs])


def measure(name: str, end: float, size: tuple[int, int, int]) -> float:
    torch.set_num_threads(1)
    state, hidden, batch = size
    field, y0 = Field(state, hidden), initial(state, batch)
    gradients(name, field, y0[:2], 1.0)
    return peak_megabytes(lambda: gradients(name, field, y0, end))


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], float(sys.argv[2]), json.loads(sys.argv[3]))))
