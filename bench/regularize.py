"""Local regularisation on MNIST: NFE, accuracy and time of prediction: python bench/regularize.py

The classifier of arXiv 2303.02262: the image is the state of an ODE with a 784-100-784 tanh field
(t concatenated), tsit5 at a tolerance of 1.4e-8, a linear layer behind it; Adam at 1e-3, weights
from 2.5 to 1.0, exponentially. At CPU size: fewer images, steps and samples per batch, all of them
arguments. Every row is kept as it ends, so a broken run continues where it was. Times of prediction
are taken at the end, with the models of one seed in turn. FASTNODE_DATA names the folder with the
data.

    vanilla        no regulariser
    unbiased       a uniform time of the interval
    biased         a time at which one of the solver's steps began
    *-full         the same with the gradient of the first slope as well (Local(hold_k1=False))
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

# Before torch is loaded: rows are compared on one core.
os.environ["OMP_NUM_THREADS"] = "1"

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from uci import processor

from fastnode import datasets
from fastnode.nn import MLPField, NeuralODE
from fastnode.regularize import Exponential, Local, Regularizer
from fastnode.training.batches import Batches
from fastnode.training.checkpoint import write_json

VARIANTS = ("vanilla", "unbiased", "biased", "unbiased-full", "biased-full")
BUDGET = ("steps", "batch", "images", "tests", "tolerance", "weight", "weight_end", "lr")
#: What local regularisation is to reach: NFE against vanilla, and accuracy in points.
MOST_NFE, MOST_POINTS = 0.70, 0.5
#: Batches that each model predicts when times are taken.
ROUNDS = 15


def regularizer(variant: str, budget: dict[str, Any]) -> Regularizer | None:
    if variant == "vanilla":
        return None
    mode, _, full = variant.partition("-")
    weight = Exponential(budget["weight"], budget["weight_end"], budget["steps"])
    generator = torch.Generator().manual_seed(0)
    return Local(mode, weight=weight, hold_k1=not full, generator=generator)


def images(count: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x[:count].reshape(-1, 784).float(), y[:count]


class Classifier(nn.Module):
    def __init__(self, tolerance: float, made: Regularizer | None = None) -> None:
        super().__init__()
        field = MLPField(784, 100, depth=2, activation="tanh")
        self.ode = NeuralODE(field, "tsit5", tolerance, tolerance, regularizer=made)
        self.head = nn.Linear(784, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.ode(x))


def train(variant: str, seed: int, budget: dict[str, Any], weights: Path) -> dict[str, Any]:
    data = datasets.load("mnist")
    x, y = images(budget["images"], data.x_train, data.y_train)
    torch.manual_seed(seed)
    made = regularizer(variant, budget)
    model = Classifier(budget["tolerance"], made)
    ode = model.ode
    optimizer = torch.optim.Adam(model.parameters(), budget["lr"])
    batches = Batches(len(x), budget["batch"], seed, 0, 1)
    counts, started = [], time.perf_counter()
    for step in range(budget["steps"]):
        if made is not None:
            made.step = step
        rows = batches.indices(step)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[rows]), y[rows]) + ode.regularization
        loss.backward()
        optimizer.step()
        counts.append(ode.nfe)
    seconds = time.perf_counter() - started
    tail = counts[-max(1, len(counts) // 10) :]
    parts = {"train_seconds": seconds, "train_nfe": mean(counts), "train_nfe_end": mean(tail)}
    curve = counts[:: max(1, len(counts) // 100)]
    tests = images(budget["tests"], data.x_test, data.y_test)
    torch.save(model.state_dict(), weights)
    outputs, nfe = [], []
    with torch.no_grad():
        for part in tests[0].split(budget["batch"]):
            outputs.append(model.eval()(part))
            nfe.append(ode.nfe)
    accuracy = (torch.cat(outputs).argmax(1) == tests[1]).double().mean().item()
    score = {"accuracy": accuracy, "nfe": mean(nfe)}
    return {"variant": variant, "seed": seed, **score, **parts, "nfe_curve": curve}


@torch.no_grad()
def time_predictions(rows: list[dict[str, Any]], models: Path, budget: dict[str, Any]) -> None:
    """Adds to the rows of one seed the median time of a batch, all models in turn."""
    data = datasets.load("mnist")
    x, _ = images(budget["batch"], data.x_test, data.y_test)
    made = []
    for row in rows:
        model = Classifier(budget["tolerance"]).eval()
        model.load_state_dict(torch.load(weights_of(models, row["variant"], row["seed"])))
        made.append(model)
    seconds: list[list[float]] = [[] for _ in rows]
    for _ in range(ROUNDS):
        for model, times in zip(made, seconds, strict=True):
            started = time.perf_counter()
            model(x)
            times.append(time.perf_counter() - started)
    for row, times in zip(rows, seconds, strict=True):
        row["seconds_per_batch"] = median(times)


def weights_of(models: Path, variant: str, seed: int) -> Path:
    return models / f"{variant}-{seed}.pt"


def open_report(path: Path, budget: dict[str, Any]) -> dict[str, Any]:
    """The rows kept so far; SystemExit if they are of another budget or machine."""
    head = {"device": processor(), "torch": torch.__version__, "threads": 1, **budget, "rows": []}
    if not path.exists():
        return head
    report = json.loads(path.read_text())
    for name in ("device", "torch", *BUDGET):
        if report[name] != head[name]:
            raise SystemExit(f"{path} is of {name} {report[name]!r}, this run of {head[name]!r}")
    return report


def table(report: dict[str, Any]) -> str:
    """Means over the seeds; the seeds that miss the goal are counted."""
    rows = {(row["variant"], row["seed"]): row for row in report["rows"]}
    lines = [
        "variant         seeds  test %      NFE  NFE/vanilla  faster  train s  seeds that hold"
    ]
    for variant in VARIANTS:
        mine = [row for (name, _), row in rows.items() if name == variant]
        pairs = [
            (row, rows["vanilla", row["seed"]]) for row in mine if ("vanilla", row["seed"]) in rows
        ]
        if not pairs:
            continue
        shares = [row["nfe"] / base["nfe"] for row, base in pairs]
        faster = [base["seconds_per_batch"] / row["seconds_per_batch"] for row, base in pairs]
        lost = [100 * (base["accuracy"] - row["accuracy"]) for row, base in pairs]
        holds = sum(s <= MOST_NFE and x <= MOST_POINTS for s, x in zip(shares, lost, strict=True))
        lines.append(
            f"{variant:<15} {len(pairs):>5} {100 * mean(r['accuracy'] for r, _ in pairs):>7.2f} "
            f"{mean(r['nfe'] for r, _ in pairs):>8.1f} {mean(shares):>12.3f} {mean(faster):>7.2f} "
            f"{mean(r['train_seconds'] for r, _ in pairs):>8.0f}  {holds} of {len(pairs)}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variants", nargs="+", default=VARIANTS[:3], choices=VARIANTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--tests", type=int, default=2048)
    parser.add_argument("--tolerance", type=float, default=1.4e-8)
    parser.add_argument("--weight", type=float, default=2.5)
    parser.add_argument("--weight-end", type=float, default=1.0)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, default=Path("bench/results/cpu/regularize.json"))
    parser.add_argument("--models", type=Path, default=Path("out/regularize"))
    arguments = parser.parse_args()
    arguments.models.mkdir(parents=True, exist_ok=True)
    budget = {name: getattr(arguments, name) for name in BUDGET}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    report = open_report(arguments.out, budget)
    done = {(row["variant"], row["seed"]) for row in report["rows"]}
    for seed, variant in itertools.product(range(arguments.seeds), arguments.variants):
        if (variant, seed) in done:
            continue
        row = train(variant, seed, budget, weights_of(arguments.models, variant, seed))
        report["rows"].append(row)
        write_json(arguments.out, report)
        print(
            f"{variant} {seed}: {row['accuracy']:.2%}, NFE {row['nfe']:.1f}, "
            f"trained in {row['train_seconds']:.0f} s",
            flush=True,
        )
    for seed in range(arguments.seeds):
        rows = [row for row in report["rows"] if row["seed"] == seed]
        time_predictions(rows, arguments.models, budget)
    write_json(arguments.out, report)
    print(table(report))


if __name__ == "__main__":
    main()
