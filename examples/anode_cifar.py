"""A small residual network of ODE blocks on CIFAR10, trained in the memory of one step.

Each block takes four steps of Heun's method through two convolutions. It is trained twice from the
same start: once with the autograd graph of all steps in memory (backprop), once with
``checkpoint``, which keeps the states between steps and recomputes each step in the backward pass,
as ANODE does (arXiv 1902.10298). Prints the largest difference of the two networks' parameters
after training, their accuracy, and time and peak memory of both, each in a separate process.

Data: CIFAR10 or a part of it in the folder that FASTNODE_DATA names; scikit-learn's digits
otherwise, or with --data digits.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnode.datasets import Dataset, load
from fastnode.nn import ODEBlock


def load_images(name: str) -> Dataset:
    try:
        return load(name)
    except FileNotFoundError as error:
        print(f"{error}\nusing scikit-learn's digits instead", file=sys.stderr)
        return load("digits")


def images(x: Tensor) -> Tensor:
    """[N, channels, H, W], also of digits, which come as rows of 64 pixels."""
    x = x if x.ndim == 4 else x.view(-1, 1, 8, 8)
    return (x - 0.5) / 0.25


def block(channels: int, adjoint: str) -> ODEBlock:
    field = nn.Sequential(
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1),
    )
    return ODEBlock(field, steps=4, method="heun2", adjoint=adjoint, autonomous=True)


def network(channels: int, adjoint: str) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 16, 4, stride=2, padding=1),
        block(16, adjoint),
        nn.Conv2d(16, 32, 2, stride=2),
        block(32, adjoint),
        nn.Conv2d(32, 64, 2, stride=2),
        block(64, adjoint),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def peak_megabytes(reset: bool = False) -> float:
    """The process's largest memory since the last reset; NaN on other systems than Linux."""
    if not Path("/proc/self/clear_refs").exists():
        return float("nan")
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


def train(adjoint: str, name: str, steps: int, batch: int) -> dict[str, Any]:
    data = load_images(name)
    x, y = images(data.x_train), data.y_train
    torch.manual_seed(0)
    model = network(x.shape[1], adjoint)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    before, start = peak_megabytes(reset=True), time.perf_counter()
    for _ in range(steps):
        rows = torch.randint(len(x), (batch,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        schedule.step()
    seconds, memory = time.perf_counter() - start, peak_megabytes() - before
    model.eval()
    with torch.no_grad():
        parts = images(data.x_test).split(200)
        guess = torch.cat([model(part).argmax(1) for part in parts])
    return {
        "data": data.name,
        "accuracy": (guess == data.y_test).float().mean().item(),
        "seconds": seconds,
        "megabytes": memory,
        "parameters": {key: value.numpy() for key, value in model.state_dict().items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=["cifar10", "digits"], default="cifar10")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--quick", action="store_true", help="a few steps only")
    options = parser.parse_args()
    steps = 3 if options.quick else 80
    found = {}
    for adjoint in ("backprop", "checkpoint"):
        work = (train, adjoint, options.data, steps, options.batch)
        if options.quick:
            run = train(*work[1:])
        else:
            # A separate process for each: memory that one has freed would serve the next.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                run = pool.submit(*work).result()
        found[adjoint] = run
        print(
            f"{adjoint:>10}: {run['data']} test accuracy {100 * run['accuracy']:.1f} %, "
            f"{run['seconds']:.1f} s, peak memory {run['megabytes']:.0f} MB above the start"
        )
    one, other = (run["parameters"] for run in found.values())
    differences = [abs(one[key] - other[key]).max() for key in one]
    same = sum(difference == 0 for difference in differences)
    print(f"largest difference of parameters and buffers: {max(differences):.1e}")
    print(f"equal to the last bit: {same} of {len(differences)} tensors")


if __name__ == "__main__":
    main()
