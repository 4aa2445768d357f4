"""RMSE on UCI sets, trained without simulation and through the solver: python -m bench.uci

Both methods get the same nets, steps and early stopping (validation RMSE with dopri5, patience of
the recipe). Each run has one thread; `--jobs` of them go side by side. Every row is kept as it
ends, so a broken run continues where it was. FASTNODE_DATA names the folder with the data.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

# Before torch is loaded, here and in the workers: the nets are too small for two threads.
os.environ["OMP_NUM_THREADS"] = "1"

from bench.machine import head
from bench.results_file import Row, Run, read, write
from fastnode import datasets
from fastnode.training import METHODS, Config, Trainer, recipe_for

SETS = ("boston", "concrete", "yacht", "energy")
SOLVERS = ("euler-1", "euler-2", "euler-10", "euler-20", "dopri5")

Key = tuple[str, int, str]


def train(name: str, split: int, method: str, steps: int) -> dict[str, Any]:
    data = datasets.load(f"uci/{name}", split)
    recipe = recipe_for(data)
    every = Config.default_eval_every(len(data.x_train), recipe.batch)
    config = Config(data.name, method, steps, recipe.batch, recipe.lr, every, split=split)
    with tempfile.TemporaryDirectory() as out:
        run = Trainer(config, data, recipe, out, checkpoint_every=steps)
        results = run.run()
    assert results is not None
    seconds = sum(row["seconds"] for row in run.history)
    recorded = run.history[-1]["step"]
    return {
        "set": name,
        "split": split,
        "method": method,
        "steps": run.step,
        "best_step": run.best["step"],
        "seconds": seconds,
        "samples_per_second": recorded * config.batch / seconds,
        "nfe_per_step": mean(row["nfe_per_step"] for row in run.history),
        "rmse": {solver: results["solvers"][solver]["rmse"] for solver in SOLVERS},
        "nfe": {solver: results["solvers"][solver]["nfe"] for solver in SOLVERS},
    }


def open_report(path: Path, steps: int) -> Run:
    """The rows kept so far; SystemExit if they are of another budget or machine."""
    mine = {**head(), "threads": 1, "max_steps": steps}
    if not path.exists():
        return Run(path.stem, mine, [])
    report = read(path)
    for name in ("device", "torch", "max_steps"):
        if report.head[name] != mine[name]:
            found = report.head[name]
            raise SystemExit(f"{path} is of {name} {found!r}, this run of {mine[name]!r}")
    return report


def missing(rows: list[Row], sets: list[str], splits: int) -> Iterator[Key]:
    done = {(row["set"], row["split"], row["method"]) for row in rows}
    for key in itertools.product(sets, range(splits), METHODS):
        if key not in done:
            yield key


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="+", default=SETS, choices=datasets.UCI)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10_000, help="at most, for each run")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("bench/results/cpu/uci.jsonl"))
    arguments = parser.parse_args()
    report = open_report(arguments.out, arguments.steps)
    todo = list(missing(report.rows, arguments.sets, arguments.splits))
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        runs = [pool.submit(train, *key, arguments.steps) for key in todo]
        for count, run in enumerate(as_completed(runs), 1):
            row = run.result()
            report.rows.append(row)
            report.rows.sort(key=lambda row: (row["set"], row["split"], row["method"]))
            write(arguments.out, report.head, report.rows)
            print(
                f"{count}/{len(todo)} {row['set']} {row['split']} {row['method']}: Euler 1 "
                f"{row['rmse']['euler-1']:.3f}, dopri5 {row['rmse']['dopri5']:.3f}, "
                f"{row['steps']} steps in {row['seconds']:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
