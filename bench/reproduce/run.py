"""Rows are run, each kept as JSON as it ends; a broken run goes on from its checkpoint."""

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
from bench.reproduce.rows import Row
from fastnode import datasets
from fastnode.datasets import Dataset
from fastnode.nn import Recipe
from fastnode.training import Config, Trainer, evaluate, recipe_for, restore, solvers_of
from fastnode.training.checkpoint import write_json
from fastnode.training.evaluation import predict
from fastnode.training.loop import summary

#: Points of a curve that are kept.
POINTS = 40
#: Rows on which the accuracy of training data is taken.
TRAINED = 10_000
#: Batches that each model predicts when times are taken.
ROUNDS, TIMED = 9, 256


def kept(folder: Path, row: Row) -> dict[str, Any] | None:
    """What a row left behind, unless it was run with other settings."""
    path = folder / f"{row.name}.json"
    if not path.exists():
        return None
    content = json.loads(path.read_text())
    same = all(content["config"][name] == value for name, value in row.settings.items())
    return content if same else None


def configure(row: Row, data: Dataset, recipe: Recipe) -> Config:
    own = {"method": recipe.default_method, "steps": recipe.steps, "batch": recipe.batch}
    settings = {**own, "lr": recipe.lr, **row.settings}
    every = Config.default_eval_every(len(data.x_train), settings["batch"])
    return Config(**{"eval_every": every, **settings})


def checkpoints(folder: Path, row: Row) -> Path:
    """Where a row is trained; another place for other settings."""
    settings = json.dumps(row.settings, sort_keys=True).encode()
    return folder / f"{row.name}-{hashlib.blake2b(settings, digest_size=4).hexdigest()}"


def run(row: Row, folder: Path, runs: Path, device: torch.device) -> dict[str, Any]:
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
    keep = history[:: max(1, len(history) // POINTS)]
    names = ("step", "nfe_per_step", "total")
    content["curve"] = [[round(entry[name], 6) for name in names] for entry in keep]
    content["data"] = {"source": Path(data.source).name, "samples": len(data.x_train)}
    content["machine"] = machine(device)
    if data.task == "classification" and config.method == "simfree":
        part = replace(data, x_test=data.x_train[:TRAINED], y_test=data.y_train[:TRAINED])
        content["trained_on"] = evaluate(trainer.model, part, solvers_of(recipe))
    path = folder / f"{row.name}.json"
    write_json(path, content)
    return content


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} thread(s)"


def time_predictions(rows: list[Row], folder: Path, runs: Path, device: torch.device) -> None:
    """Adds the median time of a batch to rows of one section and seed, their models in turn."""
    ready = [row for row in rows if kept(folder, row) and checkpoints(runs, row).is_dir()]
    if len(ready) < 2:
        return
    restored = [restore(checkpoints(runs, row) / "checkpoint.pt", device) for row in ready]
    seconds: list[list[float]] = [[] for _ in ready]
    for _ in range(ROUNDS):
        for each, times in zip(restored, seconds, strict=True):
            solver = solvers_of(each.recipe, each.config.tolerance)[-1]
            started = time.perf_counter()
            predict(each.model, each.data.x_test[:TIMED], solver)
            times.append(time.perf_counter() - started)
    for row, times in zip(ready, seconds, strict=True):
        content = kept(folder, row)
        assert content is not None
        content["seconds_per_batch"] = median(times)
        write_json(folder / f"{row.name}.json", content)


def failed(row: Row, folder: Path, error: Exception) -> None:
    """Keeps the reason why a row has no figure."""
    config = {**row.settings}
    write_json(folder / f"{row.name}.json", {"config": config, "failed": str(error)})
