"""What an error estimate is worth near float32's own spacing: python -m bench.precision

The 784-100-784 tanh field of arXiv 2303.02262 after 100 steps of training on MNIST: the local
error E of the step with which a solve from the middle of the interval begins, and the evaluations
of a whole solve before training, by tolerance and dtype. FASTNODE_DATA names the folder with the
data.
"""

from __future__ import annotations

import argparse
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnode
from bench.machine import head
from bench.results_file import write
from fastnode import datasets
from fastnode.api.embedded_step import Start, find_tableau
from fastnode.nn import MLPField, NeuralODE

TOLERANCES = (1.4e-8, 1e-6, 1e-5, 1e-4)
STEPS, BATCH = 100, 64
TIMES = torch.tensor([0.0, 1.0])


def evaluations(field: nn.Module, y: Tensor, tolerance: float) -> int:
    solution = fastnode.solve(field, y, TIMES, rtol=tolerance, atol=tolerance, adjoint="none")
    assert isinstance(solution.nfe, int)
    return solution.nfe


def first_error(field: nn.Module, y: Tensor, tolerance: float) -> float:
    """E of the first step of a solve from t = 0.5 on."""
    times = torch.tensor([0.0, 0.5])
    middle = fastnode.solve(field, y, times, rtol=1e-6, atol=1e-6, adjoint="none").ys[-1]
    tableau = find_tableau("tsit5")
    start = Start(field, 0.5, 1.0, middle, (), tableau, tolerance, tolerance)
    derivative = start.derivative(constant=True)
    return start.norm(start.take(derivative, start.first_step(derivative))).item()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("bench/results/cpu/precision.jsonl"))
    out = parser.parse_args().out
    torch.manual_seed(0)
    data = datasets.load("mnist")
    x, labels = data.x_train[: STEPS * BATCH].reshape(-1, 784), data.y_train[: STEPS * BATCH]
    field, classify = MLPField(784, 100, depth=2, activation="tanh"), nn.Linear(784, 10)
    untrained = deepcopy(field)
    ode = NeuralODE(field, "tsit5", 1e-5, 1e-5)
    optimizer = torch.optim.Adam([*field.parameters(), *classify.parameters()], 1e-3)
    for batch, target in zip(x.split(BATCH), labels.split(BATCH), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(classify(ode(batch)), target).backward()
        optimizer.step()
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        for tolerance in TOLERANCES:
            row: dict[str, Any] = {"tolerance": tolerance, "error": {}, "evaluations": {}}
            for dtype in (torch.float32, torch.float64):
                name, y = str(dtype).removeprefix("torch."), x[:BATCH].to(dtype)
                row["error"][name] = first_error(deepcopy(field).to(dtype), y, tolerance)
                row["evaluations"][name] = evaluations(deepcopy(untrained).to(dtype), y, tolerance)
            rows.append(row)
            print(row)
    write(out, {**head(), "steps": STEPS, "batch": BATCH}, rows)


if __name__ == "__main__":
    main()
