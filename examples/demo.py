"""`make demo`: neural ODEs trained without simulation, through the solver, and by torchdiffeq.

Two tables and a figure in under two minutes on two cores; nothing is downloaded. On digits training
without simulation takes more samples in a second, and more steps; on a regression one Euler step
solves what it has learnt, and does not solve the NODE. Below each table is said which of the two
predicts better by one step, and by an accurate solver. Last come four pairs whose paths cross.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import time
from pathlib import Path
from statistics import median
from typing import Any

import four_pairs
import matplotlib
import numpy as np
import torch
from sklearn.datasets import make_friedman3
from torch import Tensor, nn

from fastnode.datasets import Dataset, load
from fastnode.nn import EncodedODE
from fastnode.training import METHODS, Config, Trainer, build_model, recipe_for
from fastnode.training.batches import Batches
from fastnode.training.checkpoint import write_json
from fastnode.training.models import build_objective, build_optimizer

SOLVERS = ("euler-1", "euler-2", "euler-10", "euler-20", "dopri5")
#: A step through the solver costs more, and fewer of them are needed: on digits 300 are no better.
STEPS = {"digits": {"simfree": 600, "node": 100}, "regression": {"simfree": 3000, "node": 1500}}
#: In turns, for the samples per second.
ROUNDS, STEPS_A_ROUND = 9, 6


def settings(data: Dataset, method: str, steps: int) -> Config:
    recipe = recipe_for(data)
    lr = 1e-3 if (data.name, method) == ("digits", "node") else recipe.lr
    every = Config.default_eval_every(len(data.x_train), recipe.batch)
    name = data.name if data.table is None else data.source
    return Config(name, method, steps, recipe.batch, lr, every)


def train(data: Dataset, title: str, method: str, out: Path, quick: bool) -> dict[str, Any]:
    config = settings(data, method, 20 if quick else STEPS[title][method])
    run = Trainer(config, data, recipe_for(data), out / f"{title}-{method}")
    results = run.run(
        lambda p: print(f"\r{title}, {method:<8} step {p.step}/{p.steps}", end="", flush=True)
    )
    print()
    assert results is not None
    return {
        "method": method,
        "steps": run.step,
        "seconds": sum(row["seconds"] for row in run.history),
        "nfe": sum(row["nfe_per_step"] for row in run.history) / len(run.history),
    } | results


class ByTorchdiffeq(nn.Module):
    """The networks of a NODE of fastnode, solved by torchdiffeq to the same tolerances."""

    regularizer = None

    def __init__(self, model: EncodedODE) -> None:
        super().__init__()
        self.encoder, self.field, self.decoder = model.encoder, model.field, model.decoder
        self.solver = {"method": model.method, "rtol": model.rtol, "atol": model.atol}

    def forward(self, x: Tensor) -> Tensor:
        from torchdiffeq import odeint

        states = odeint(self.field, self.encoder(x), torch.tensor([0.0, 1.0]), **self.solver)
        return self.decoder(states[-1])


class Training:
    """Optimiser steps of a model on digits, to be timed."""

    def __init__(self, data: Dataset, method: str, wrap: Any = lambda model: model) -> None:
        config, recipe = settings(data, method, 1000), recipe_for(data)
        self.model = wrap(build_model(config, recipe))
        self.objective = build_objective(self.model, recipe)
        self.optimizer = build_optimizer(list(self.model.parameters()), config, recipe)
        self.batches = Batches(len(data.x_train), config.batch, 0, 0, 1)
        self.data, self.step, self.batch = data, 0, config.batch
        self.generator = torch.Generator()
        self.losses: list[float] = []
        self.rates: list[float] = []

    def round(self) -> None:
        begin = time.perf_counter()
        for _ in range(STEPS_A_ROUND):
            rows = self.batches.indices(self.step)
            self.optimizer.zero_grad()
            x, y = self.data.x_train[rows], self.data.y_train[rows]
            loss = self.objective(x, y, self.generator).total
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.losses.append(loss.item())
            self.step += 1
        self.rates.append(STEPS_A_ROUND * self.batch / (time.perf_counter() - begin))


def samples_per_second(data: Dataset, rounds: int) -> dict[str, float]:
    """The medians of rounds in turns; the two NODEs begin with the same losses."""
    runs = {"simfree": Training(data, "simfree"), "node": Training(data, "node")}
    if importlib.util.find_spec("torchdiffeq") is not None:
        runs["torchdiffeq"] = Training(data, "node", ByTorchdiffeq)
    for _ in range(rounds):
        for run in runs.values():
            run.round()
    if "torchdiffeq" in runs:
        pair = [runs[name].losses[0] for name in ("node", "torchdiffeq")]
        assert abs(pair[0] - pair[1]) < 1e-3, pair
    # The first round warms up.
    return {name: median(run.rates[1:]) for name, run in runs.items()}


def circuit(path: Path) -> Dataset:
    """The phase of a circuit, from its parts and the frequency, as a csv file of one's own.

    Source: the third problem of Friedman, Annals of Statistics 1991, without its noise.
    """
    x, y = make_friedman3(1400, random_state=0)
    names = "resistance,frequency,inductance,capacitance,phase"
    np.savetxt(path, np.c_[x, y], "%.7g", ",", header=names, comments="")
    return load(str(path), target="phase")


def as_text(metric: str, value: float) -> str:
    return f"{100 * value:.1f} %" if metric == "accuracy" else f"{value:.3g}"


def table(rows: list[dict[str, Any]], rates: dict[str, float]) -> str:
    """A line for each method; that of torchdiffeq has its samples per second alone."""
    metric = rows[0]["metric"]
    head = ["method", "steps", "NFE/step", "seconds", *SOLVERS, "NFE of dopri5"]
    lines = [head]
    for row in rows:
        scores = [as_text(metric, row["solvers"][name][metric]) for name in SOLVERS]
        nfe = f"{row['solvers']['dopri5']['nfe']:.0f}"
        numbers = [str(row["steps"]), f"{row['nfe']:.1f}", f"{row['seconds']:.1f}"]
        lines.append([row["method"], *numbers, *scores, nfe])
    if rates:
        lines.append(["node, torchdiffeq", *[""] * (len(head) - 1)])
        rate = [f"{value:,.0f}" for value in rates.values()]
        column = ["samples/s", *rate, *["not installed"] * (len(lines) - 1 - len(rate))]
        lines = [[*line[:3], cell, *line[3:]] for line, cell in zip(lines, column, strict=True)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def compare(rows: list[dict[str, Any]]) -> None:
    """Which kind of training is the more accurate, by one step and by an accurate solver."""
    metric = rows[0]["metric"]
    sign = 1 if metric == "accuracy" else -1
    for solver, words in (("euler-1", "One Euler step"), ("dopri5", "dopri5")):
        scores = {row["method"]: row["solvers"][solver][metric] for row in rows}
        best = max(scores, key=lambda name: sign * scores[name])
        shown = ", ".join(f"{as_text(metric, score)} {name}" for name, score in scores.items())
        print(f"{words}: {shown}. The more accurate: {best}.")


def plane(trajectories: Tensor) -> Tensor:
    """Trajectories [T, 4, D] in the plane of their largest variance."""
    flat = trajectories.reshape(-1, trajectories.shape[-1])
    if flat.shape[1] == 2:
        return trajectories
    centred = flat - flat.mean(0)
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
    return (centred @ axes.T).view(*trajectories.shape[:2], 2)


def draw_pairs(axes: Any, outcome: four_pairs.Outcome) -> None:
    lines = plane(outcome.trajectories)
    for pair in range(4):
        x, y = lines[:, pair].T
        axes.plot(x, y, color=f"C{pair}", linewidth=1.8)
        axes.plot(x[0], y[0], "o", color=f"C{pair}", markersize=7)
        axes.plot(x[-1], y[-1], "s", color=f"C{pair}", markersize=7)
    if outcome.trajectories.shape[-1] == 2:
        for pair, (x, y) in enumerate(four_pairs.PARTNERS.tolist()):
            axes.plot(x, y, "s", mfc="none", mec=f"C{pair}", markersize=13)
        axes.set(xlabel="x", ylabel="y")
    else:
        axes.set(xlabel="first principal axis", ylabel="second principal axis")
    axes.set_title(
        f"{outcome.name}\nright pairs: Euler-1 {outcome.right_one_step}/4, "
        f"dopri5 {outcome.right_dopri5}/4 (NFE {outcome.nfe})",
        fontsize=10,
    )


def draw_scores(axes: Any, rows: list[dict[str, Any]], title: str, unit: str) -> None:
    metric = rows[0]["metric"]
    scale = 100 if metric == "accuracy" else 1
    for row, marker in zip(rows, "os", strict=True):
        *euler, last = (row["solvers"][name] for name in SOLVERS)
        nfe, scores = ([point[key] for point in euler] for key in ("nfe", metric))
        scores = [scale * score for score in scores]
        (line,) = axes.plot(nfe, scores, marker + "-", label=f"{row['method']}, Euler")
        axes.plot(
            last["nfe"], scale * last[metric], "*", color=line.get_color(), markersize=15,
            label=f"{row['method']}, dopri5",
        )  # fmt: skip
    axes.set(xscale="log", xlabel="evaluations of the field", ylabel=f"{title}, {unit}")
    if metric == "rmse":
        axes.set_yscale("log")
    axes.set_title(f"{title} over evaluations", fontsize=10)
    axes.legend(fontsize=8)


def draw(
    digits: list[dict[str, Any]],
    regression: list[dict[str, Any]],
    outcomes: list[four_pairs.Outcome],
    path: Path,
) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 5, figsize=(21, 4.2), constrained_layout=True)
    draw_scores(axes[0], digits, "digits", "test accuracy in %")
    draw_scores(axes[1], regression, "phase of a circuit", "test RMSE in radian")
    for axis, outcome in zip(axes[2:], outcomes, strict=True):
        draw_pairs(axis, outcome)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def run(out: Path, quick: bool = False) -> dict[str, Any]:
    """Trains, prints, draws; returns what was measured. What was in the folder is deleted."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)

    data = load("digits")
    rates = samples_per_second(data, rounds=2 if quick else ROUNDS)
    digits = [train(data, "digits", method, out, quick) for method in METHODS]
    print("\ndigits: 8x8 images, 10 classes; accuracy on the test part by solver\n")
    print(table(digits, rates))
    print()
    compare(digits)
    for one, other in (("simfree", "node"), ("node", "torchdiffeq")):
        if other in rates:
            ratio = rates[one] / rates[other]
            print(f"Samples per second, {one} over {other}: {ratio:.1f} times.")

    data = circuit(out / "circuit.csv")
    regression = [train(data, "regression", method, out, quick) for method in METHODS]
    print("\nphase of a circuit: 4 inputs; RMSE on the test part by solver, in radian\n")
    print(table(regression, {}))
    print()
    compare(regression)
    print(f"What predicts the mean has an RMSE of {data.y_std:.3g}.")

    print("\nfour pairs whose straight lines cross\n")
    outcomes = four_pairs.run(quick)
    for outcome in outcomes:
        print(
            f"{outcome.name:<30} right pairs: Euler-1 {outcome.right_one_step}/4, "
            f"dopri5 {outcome.right_dopri5}/4 with {outcome.nfe} evaluations"
        )
    draw(digits, regression, outcomes, out / "demo.png")
    return {
        "digits": digits,
        "samples_per_second": rates,
        "regression": regression,
        "regression_std": data.y_std,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    parser.add_argument("--quick", action="store_true", help="a few steps only")
    options = parser.parse_args()
    begin = time.perf_counter()
    write_json(options.out / "demo.json", run(options.out, options.quick))
    seconds = time.perf_counter() - begin
    print(f"\nfigure: {options.out / 'demo.png'} ({seconds:.0f} seconds in all)")


if __name__ == "__main__":
    main()
