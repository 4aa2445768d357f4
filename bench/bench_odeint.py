"""Solving without gradients: against torchdiffeq, torchode, torchdyn and diffrax.

The vector field is an ordinary nn.Module, Linear - activation - Linear, called from Python once per
stage. ``overhead`` is the time of a solve less the time spent inside the field, divided by the
number of evaluations: what a library costs by itself.

All but torchdiffeq are optional (see ``rivals``); which of them took no part, and why, is printed
and kept beside the ratios.
"""

from __future__ import annotations

import statistics
import time

import pytest
import torch
import torchdiffeq
from ratio import compare, full
from rivals import RIVALS, absent

import fastnode

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# (state, hidden, batch): from all overhead to all arithmetic.
SIZES = [(2, 16, 1), (2, 64, 32), (64, 128, 128), (512, 512, 1024)]
TIMES = torch.tensor([0.0, 1.0])
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
ACTIVATIONS = {"tanh": torch.nn.Tanh, "silu": torch.nn.SiLU}


class Field(torch.nn.Module):
    """A two-layer network."""

    def __init__(self, state: int, hidden: int, activation: str = "tanh"):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(state, hidden),
            ACTIVATIONS[activation](),
            torch.nn.Linear(hidden, state),
        ).to(DEVICE)

    def forward(self, t, y):
        return self.net(y)


class Timed:
    """A field that counts its evaluations and the seconds inside it."""

    def __init__(self, field: Field):
        self.field = field
        self.reset()

    def reset(self) -> None:
        self.evaluations, self.seconds = 0, 0.0

    def __call__(self, t, y):
        start = time.perf_counter()
        out = self.field(t, y)
        self.seconds += time.perf_counter() - start
        self.evaluations += 1
        return out


def initial(state: int, batch: int):
    return torch.randn(batch, state, generator=torch.Generator().manual_seed(1)).to(DEVICE)


def solver(library, y0: torch.Tensor, t: torch.Tensor, method: str = "dopri5", options=None):
    """Function of a field: its solution by a library."""
    arguments = {"method": method, "options": options, **TOLERANCE}
    return lambda field: library.odeint(field, y0, t, **arguments)[-1]


def evaluations(field: Field, solve) -> int:
    timed = Timed(field)
    solve(timed)
    return timed.evaluations


def evaluations_of_rival(make, field: Field, y0: torch.Tensor) -> int:
    calls: list[None] = []
    make(field, y0, count=lambda: calls.append(None))()
    return len(calls)


@torch.no_grad()
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("size", [*SIZES, *full((64, 128, 32))], ids=str)
def test_solve(benchmark, size, activation):
    state, hidden, batch = size
    field, y0 = Field(state, hidden, activation), initial(state, batch)
    ours, theirs = (solver(lib, y0, TIMES.to(DEVICE)) for lib in (fastnode, torchdiffeq))
    references = {"torchdiffeq": lambda: theirs(field)}
    counts = {"fastnode": evaluations(field, ours), "torchdiffeq": evaluations(field, theirs)}
    rivals = RIVALS if activation == "tanh" else {}
    left_out = {name: reason for name, (module, _) in rivals.items() if (reason := absent(module))}
    for name, (_, make) in rivals.items():
        if name not in left_out:
            counts[name] = evaluations_of_rival(make, field, y0)
            references[name] = make(field, y0)
    exact = fastnode.odeint(
        field.double(),
        y0.double(),
        TIMES.double().to(DEVICE),
        method="dopri5",
        rtol=1e-11,
        atol=1e-11,
    )[-1].float()
    field.float()
    errors = {}
    for name, solve in {"fastnode": lambda: ours(field), **references}.items():
        result = torch.as_tensor(solve().tolist()).to(DEVICE)
        torch.testing.assert_close(result, exact, rtol=1e-3, atol=1e-3)
        errors[name] = (result - exact).abs().max().item()
    ratios = compare(
        benchmark,
        f"dopri5 {activation}",
        str(size),
        lambda: ours(field),
        references,
        rounds=3 if size == SIZES[-1] else 10,
        warm=1 if size == SIZES[-1] else 3,
        errors=errors,
        evaluations=counts,
        left_out=left_out,
    )
    assert all(ratio > 0 for ratio in ratios.values())


def overhead(field: Field, solve, rounds: int) -> tuple[float, float]:
    """Medians of seconds per evaluation outside the field, and of seconds per solve."""
    timed = Timed(field)
    outside, whole = [], []
    # One untimed, so that the heap is as this contestant leaves it (see ratio.seconds).
    solve(timed)
    for _ in range(rounds):
        timed.reset()
        start = time.perf_counter()
        solve(timed)
        taken = time.perf_counter() - start
        outside.append((taken - timed.seconds) / timed.evaluations)
        whole.append(taken)
    return statistics.median(outside), statistics.median(whole)


@torch.no_grad()
@pytest.mark.skipif(DEVICE != "cpu", reason="the field times itself, which needs a synchronous CPU")
@pytest.mark.parametrize("batch", [1, *full(32, 128), 1024])
@pytest.mark.parametrize("state", [2, *full(16), 64, 512])
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_overhead(benchmark, method, state, batch):
    field, y0 = Field(state, max(16, state)), initial(state, batch)
    options = {"step_size": 0.1} if method == "rk4" else None
    ours, theirs = (solver(lib, y0, TIMES, method, options) for lib in (fastnode, torchdiffeq))
    torch.testing.assert_close(ours(field), theirs(field), rtol=1e-3, atol=1e-3)
    rounds = 3 if state * batch > 2**17 else 15
    found: dict[str, list[tuple[float, float]]] = {"fastnode": [], "torchdiffeq": []}

    def measure():
        found["fastnode"].append(overhead(field, ours, rounds))

    benchmark.pedantic(
        measure,
        setup=lambda: found["torchdiffeq"].append(overhead(field, theirs, rounds)),
        rounds=3,
        warmup_rounds=1,
    )
    (own, own_whole), (other, other_whole) = (
        [statistics.median(column) for column in zip(*found[name][1:], strict=True)]
        for name in ("fastnode", "torchdiffeq")
    )
    benchmark.extra_info.update(
        subject=f"{method} overhead per evaluation",
        case=str((state, batch)),
        ratios={"torchdiffeq": other / own, "whole solve": other_whole / own_whole},
        microseconds=1e6 * own,
        reference_microseconds={"torchdiffeq": 1e6 * other},
    )


@torch.no_grad()
def test_step_with_a_field_that_costs_nothing(benchmark):
    y0, answer = torch.ones(2), torch.zeros(2)
    steps = 100
    options = {"first_step": 1 / steps, "max_step": 1 / steps}
    arguments = {"method": "dopri5", "rtol": 0.1, "atol": 0.1, "options": options}
    compare(
        benchmark,
        "dopri5, 100 steps of nothing",
        "(2,)",
        lambda: fastnode.odeint(lambda t, y: answer, y0, TIMES, **arguments),
        {"torchdiffeq": lambda: torchdiffeq.odeint(lambda t, y: answer, y0, TIMES, **arguments)},
        rounds=10,
    )
