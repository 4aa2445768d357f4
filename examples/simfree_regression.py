"""Simulation-free regression on a UCI set: one Euler step at test time, no solver while training.

The model of Kim, Yoo et al. 2024 (arXiv 2410.22918): encoders of x and y, a straight path between
their embeddings, a field that is fitted to its velocity. Compares the error of one step of Euler,
of ten and of dopri5; they agree because the paths are straight.

Data: the set named by --data in the folder that FASTNODE_DATA names; scikit-learn's diabetes
otherwise.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time

import torch
from torch import Tensor

from fastnode.datasets import Dataset, load
from fastnode.nn import SimulationFreeNODE, recipe


def load_table(name: str) -> Dataset:
    try:
        return load(name)
    except FileNotFoundError as error:
        print(f"{error}\nusing scikit-learn's diabetes instead", file=sys.stderr)
        return load("diabetes")


@torch.no_grad()
def error(model: SimulationFreeNODE, data: Dataset, x: Tensor, y: Tensor, **solver) -> float:
    """Root mean square error in the units of the data."""
    model.eval()
    distance = (model(x, **solver) - y).square().mean().sqrt().item() * data.y_std
    model.train()
    return distance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="uci/concrete")
    parser.add_argument("--quick", action="store_true", help="a few steps only")
    options = parser.parse_args()
    data, steps = load_table(options.data), 40 if options.quick else 3000
    torch.manual_seed(0)
    settings = recipe(data.name, data.x_train.shape[1])
    model = settings.build_simfree()
    optimizer = torch.optim.AdamW(model.parameters(), settings.lr, weight_decay=0.0)
    best, kept, start = float("inf"), model.state_dict(), time.perf_counter()
    for step in range(1, steps + 1):
        rows = torch.randint(len(data.x_train), (settings.batch,))
        optimizer.zero_grad()
        model.loss(data.x_train[rows], data.y_train[rows]).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0 and (valid := error(model, data, data.x_valid, data.y_valid)) < best:
            best, kept = valid, copy.deepcopy(model.state_dict())
    seconds = time.perf_counter() - start
    model.load_state_dict(kept)
    print(f"{data.name}: {steps} steps in {seconds:.1f} s, validation RMSE {best:.3f}")
    for name, solver in {
        "Euler, 1 step": {"method": "euler", "steps": 1},
        "Euler, 10 steps": {"method": "euler", "steps": 10},
        "dopri5": {"method": "dopri5"},
    }.items():
        rmse = error(model, data, data.x_test, data.y_test, **solver)
        print(f"{name:>16}: test RMSE {rmse:.3f} with {model.nfe} evaluations")


if __name__ == "__main__":
    main()
