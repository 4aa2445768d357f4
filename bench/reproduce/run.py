"""Rows are run, each kept as it ends; a broken run continues from its checkpoint."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.machine import processor
from bench.reproduce.plots import reads_curve
from bench.reproduce.rows import Row
from bench.results_file import read, write
from fastnode import datasets
from fastnode.datasets import Dataset
from fastnode.nn import Recipe
from fastnode.training import Config, Trainer, evaluate, recipe_for, restore, solvers_of
from fastnode.training.evaluation import predict
from fastnode.training.loop import summary

#: Points of a curve that are kept, about.
POINTS = 40
#: Rows on which the accuracy of training data is taken.
TRAINED = 10_000
#: Batches that each model predicts when times are taken.
ROUNDS, TIMED = 9, 256


def kept(path: Path, rows: list[Row]) -> list[dict[str, Any] | None]:
    """What each row left in the file, None where it was not run or run with other settings."""
    by_name = {each["name"]: each for each in read(path).rows} if path.exists() else {}

    def same(row: Row) -> bool:
        config = by_name[row.name]["config"]
        return all(config.get(name) == value for name, value in row.settings.items())

    return [by_name[row.name] if row.name in by_name and same(row) else None for row in rows]


def keep(path: Path, row: Row, content: dict[str, Any]) -> None:
    """Puts into the file what a row left behind, in place of what it left before."""
    rows = read(path).rows if path.exists() else []
    others = [each for each in rows if each["name"] != row.name]
    write(path, {}, [*others, {"name": row.name, **content}])


def configure(row: Row, data: Dataset, recipe: Recipe) -> Config:
    own = {"method": recipe.default_method, "steps": recipe.steps, "batch": recipe.batch}
    settings = {**own, "lr": recipe.lr, **row.settings}
    every = Config.default_eval_every(len(data.x_train), settings["batch"])
    return Config(**{"eval_every": every, **settings})


def checkpoints(runs: Path, row: Row) -> Path:
    """Where a row is trained; another place for other settings."""
    settings = json.dumps(row.settings, sort_keys=True).encode()
    return runs / f"{row.name}-{hashlib.blake2b(settings, digest_size=4).hexdigest()}"


def run(row: Row, path: Path, runs: Path, device: torch.device) -> dict[str, Any]:
    """Trains, scores and keeps one row.

    Raises:
        FileNotFoundError: the data are absent.
        FloatingPointError: the loss became infinite.
    """
    data = datasets.load(row.settings["dataset"], row.settings.get("split", 0))
    recipe = recipe_for(data, row.settings.get("recipe"))
    config = configure(row, data, recipe)
    trainer = Trainer(
        config,
        data,
        recipe,
        checkpoints(runs, row),
        device=device,
        checkpoint_every=max(1, config.steps // 10),
        resume=True,
    )
    results = trainer.run()
    content = summary(trainer, results)
    history = content.pop("history")
    if reads_curve(row):
        thinned = history[:: max(1, len(history) // POINTS)]
        names = ("step", "nfe_per_step", "total")
        content["curve"] = [[round(entry[name], 6) for name in names] for entry in thinned]
    content["data"] = {"source": Path(data.source).name, "samples": len(data.x_train)}
    content["machine"] = machine(device)
    if data.task == "classification" and config.method == "simfree":
        part = replace(data, x_test=data.x_train[:TRAINED], y_test=data.y_train[:TRAINED])
        content["trained_on"] = evaluate(trainer.model, part, solvers_of(recipe))
    keep(path, row, content)
    return content


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} thread(s)"


def time_predictions(rows: list[Row], path: Path, runs: Path, device: torch.device) -> None:
    """Adds the median time of a batch to rows of one section and seed, their models in turn."""
    ready = [
        (row, content)
        for row, content in zip(rows, kept(path, rows), strict=True)
        if content is not None and checkpoints(runs, row).is_dir()
    ]
    if len(ready) < 2:
        return
    restored = [restore(checkpoints(runs, row) / "checkpoint.pt", device) for row, _ in ready]
    seconds: list[list[float]] = [[] for _ in ready]
    for _ in range(ROUNDS):
        for each, times in zip(restored, seconds, strict=True):
            solver = solvers_of(each.recipe, each.config.tolerance)[-1]
            started = time.perf_counter()
            predict(each.model, each.data.x_test[:TIMED], solver)
            times.append(time.perf_counter() - started)
    for (row, content), times in zip(ready, seconds, strict=True):
        keep(path, row, {**content, "seconds_per_batch": median(times)})


def failed(row: Row, path: Path, error: Exception) -> None:
    """Keeps the reason why a row has no figure."""
    keep(path, row, {"config": {**row.settings}, "failed": str(error)})
