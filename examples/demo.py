"""`make demo`: a neural ODE on digits, trained without simulation and through the solver.

Prints one table and saves one figure, in under five minutes on two cores. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import four_pairs
import matplotlib
import torch

from fastnode.datasets import load
from fastnode.training import Config, Trainer, recipe_for
from fastnode.training.checkpoint import write_json

SOLVERS = ("euler-1", "euler-2", "euler-10", "euler-20", "dopri5")
#: A step through the solver costs more than ten times as much, so the NODE gets fewer of them and
#: still takes most of the time.
STEPS = {"simfree": 4000, "node": 1000}


def train(method: str, out: Path) -> dict[str, Any]:
    data = load("digits")
    recipe = recipe_for(data)
    steps = STEPS[method]
    config = Config(
        "digits", method, steps, recipe.batch, recipe.lr if method == "simfree" else 1e-3, steps
    )
    run = Trainer(config, data, recipe, out / method)
    results = run.run(lambda p: print(f"\r{method:<8} step {p.step}/{p.steps}", end="", flush=True))
    print()
    assert results is not None
    seconds = sum(row["seconds"] for row in run.history)
    nfe = sum(row["nfe_per_step"] for row in run.history) / len(run.history)
    rate = steps * config.batch / seconds
    return {"method": method, "steps": steps, "samples_per_second": rate, "nfe": nfe} | results


def table(rows: list[dict[str, Any]]) -> str:
    head = ["method", "NFE/step", "samples/s", *SOLVERS, "disagreement"]
    lines = [head]
    for row in rows:
        accuracy = [f"{100 * row['solvers'][name]['accuracy']:.1f} %" for name in SOLVERS]
        lines.append(
            [row["method"], f"{row['nfe']:.1f}", f"{row['samples_per_second']:,.0f}"]
            + accuracy
            + [f"{100 * row['disagreement']:.1f} %"]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def plane(trajectories: torch.Tensor) -> torch.Tensor:
    """Trajectories [T, 4, D] in the plane of their largest variance."""
    flat = trajectories.reshape(-1, trajectories.shape[-1])
    if flat.shape[1] == 2:
        return trajectories
    centred = flat - flat.mean(0)
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
    return (centred @ axes.T).view(*trajectories.shape[:2], 2)


def draw(rows: list[dict[str, Any]], outcomes: list[four_pairs.Outcome], path: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(17, 4.2), constrained_layout=True)
    for axis, outcome in zip(axes, outcomes, strict=False):
        lines = plane(outcome.trajectories)
        for pair in range(4):
            x, y = lines[:, pair].T
            axis.plot(x, y, color=f"C{pair}", linewidth=1.8)
            axis.plot(x[0], y[0], "o", color=f"C{pair}", markersize=7)
            axis.plot(x[-1], y[-1], "s", color=f"C{pair}", markersize=7)
        if outcome.trajectories.shape[-1] == 2:
            for pair, (x, y) in enumerate(four_pairs.PARTNERS.tolist()):
                axis.plot(x, y, "s", mfc="none", mec=f"C{pair}", markersize=13)
            axis.set(xlabel="x", ylabel="y")
        else:
            axis.set(xlabel="first principal axis", ylabel="second principal axis")
        axis.set_title(
            f"{outcome.name}\nright pairs: Euler-1 {outcome.right_one_step}/4, "
            f"dopri5 {outcome.right_dopri5}/4 (NFE {outcome.nfe})",
            fontsize=10,
        )
    for row, marker in zip(rows, "os", strict=True):
        points = [row["solvers"][name] for name in SOLVERS]
        order = sorted(range(len(points) - 1), key=lambda i: points[i]["nfe"])
        nfe = [points[i]["nfe"] for i in order]
        accuracy = [100 * points[i]["accuracy"] for i in order]
        (line,) = axes[3].plot(nfe, accuracy, marker + "-", label=f"{row['method']}, Euler")
        last = points[-1]
        axes[3].plot(
            last["nfe"], 100 * last["accuracy"], "*", color=line.get_color(), markersize=15,
            label=f"{row['method']}, dopri5",
        )  # fmt: skip
    axes[3].set(xscale="log", xlabel="evaluations of the field", ylabel="digits test accuracy, %")
    axes[3].set_title("accuracy over evaluations", fontsize=10)
    axes[3].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    out: Path = parser.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    rows = [train(method, out) for method in ("simfree", "node")]
    print("\ndigits: 8x8 images, 10 classes; accuracy on the test part by solver\n")
    print(table(rows))
    ratio = rows[0]["samples_per_second"] / rows[1]["samples_per_second"]
    print(f"\ntraining throughput, simfree over node: {ratio:.1f} times\n")
    outcomes = four_pairs.run()
    for outcome in outcomes:
        print(
            f"{outcome.name:<30} right pairs: Euler-1 {outcome.right_one_step}/4, "
            f"dopri5 {outcome.right_dopri5}/4 with {outcome.nfe} evaluations"
        )
    draw(rows, outcomes, out / "demo.png")
    write_json(out / "demo.json", {"digits": rows, "threads": torch.get_num_threads()})
    print(f"\nfigure: {out / 'demo.png'}")


if __name__ == "__main__":
    main()
