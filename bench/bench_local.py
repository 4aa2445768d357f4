"""What local regularisation costs: time of a training step, and memory over the number of steps.

The fields are the 784-100-784 of arXiv 2303.02262, once as an MLPField for the fused engine and
once as an ordinary module, and a deeper one of a latent ODE's size. The reference is the same step
without a regulariser: a ratio of 0.926 is a cost of 8 %. Memory is that of a process of its own,
with the continuous adjoint, which keeps nothing of the steps itself.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from statistics import median

import pytest
import torch
from memory import in_own_processes, peak_megabytes
from ratio import compare, full

import fastnode
from fastnode.nn import MLPField
from fastnode.regularize import Local

#: State, hidden size, layers, batch, and the end of the interval: about 150 evaluations.
FIELDS = {"784-100-784": (784, 100, 2, 64, 32.0), "64-128-128-64": (64, 128, 3, 128, 44.0)}
TOLERANCE = {"method": "tsit5", "rtol": 1e-5, "atol": 1e-5}
LONG = 16.0
#: The resident set differs between processes that do the same.
PROCESSES = 3


class Plain(torch.nn.Module):
    """A field that no engine looks into."""

    def __init__(self, field: torch.nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.field(t, y)


def make(name: str, fused: bool) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """Field, initial state and times; a field steep enough for many steps."""
    state, hidden, depth, batch, end = FIELDS[name]
    torch.manual_seed(0)
    field: torch.nn.Module = MLPField(state, hidden, depth=depth, activation="tanh", time="once")
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.mul_(1.5)
    y0 = torch.rand(batch, state)
    return field if fused else Plain(field), y0, torch.tensor([0.0, end])


def train(field, y0, ts, regularizer=None, adjoint="backprop") -> int:
    """One step of training; its evaluations."""
    options = {**TOLERANCE, "adjoint": adjoint}
    field.zero_grad()
    if regularizer is None:
        solution, penalty = fastnode.solve(field, y0, ts, **options), 0.0
    else:
        solution, penalty = regularizer.solve(field, y0, ts, **options)
    (solution.ys[-1].square().mean() + penalty).backward()
    return solution.nfe


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("mode", ["unbiased", "biased"])
@pytest.mark.parametrize("fused", [False, True], ids=["module", "fused"])
@pytest.mark.parametrize("name", ["784-100-784", *full("64-128-128-64")])
def test_time(benchmark, name, fused, mode):
    parts = make(name, fused)
    regularizer = Local(mode, generator=torch.Generator().manual_seed(0))
    evaluations = train(*parts), train(*parts, regularizer)
    assert min(evaluations) >= 150
    compare(
        benchmark,
        f"local {mode}, {'fused' if fused else 'module'}",
        name,
        lambda: train(*parts, regularizer),
        {"without": lambda: train(*parts)},
        rounds=40,
        warm=1,
        evaluations=dict(zip(("without", "with"), evaluations, strict=True)),
    )


@cache
def peaks(mode: str) -> dict[float, float]:
    """Megabytes by the end of the interval, the median of several processes."""
    ends = (LONG, 4 * LONG)
    runs = [(mode, end) for end in ends for _ in range(PROCESSES)]
    found = in_own_processes(__file__, runs)
    parts = (found[i : i + PROCESSES] for i in range(0, len(found), PROCESSES))
    return dict(zip(ends, map(median, parts), strict=True))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("mode", ["unbiased", "biased"])
def test_memory(benchmark, mode):
    found, without = peaks(mode), peaks("none")
    field, y0, _ = make("784-100-784", False)
    steps = {end: fastnode.solve(field, y0, torch.tensor([0.0, end]), **TOLERANCE) for end in found}
    benchmark.pedantic(lambda: None)
    benchmark.extra_info.update(
        subject=f"memory, local {mode}",
        case="784-100-784",
        ratios={f"without, t = {end:g}": without[end] / found[end] for end in found},
        microseconds=0.0,
        megabytes={f"{end:g}": value for end, value in found.items()},
        reference_megabytes={f"{end:g}": value for end, value in without.items()},
        steps={f"{end:g}": solution.accepted for end, solution in steps.items()},
    )


def measure(mode: str, end: float) -> float:
    torch.set_num_threads(1)
    field, y0, ts = make("784-100-784", False)
    y0 = y0.repeat(8, 1)
    made = None if mode == "none" else Local(mode, generator=torch.Generator().manual_seed(0))
    train(field, y0[:2], ts / ts[-1], made, "continuous")
    ts = torch.tensor([0.0, end])
    return peak_megabytes(lambda: train(field, y0, ts, made, "continuous"))


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], float(sys.argv[2]))))
