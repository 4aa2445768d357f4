"""The training loop of both methods, with checkpoints from which a killed run continues."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastnode.datasets import Dataset
from fastnode.nn import Recipe
from fastnode.train_step.step import TrainStep
from fastnode.training import checkpoint
from fastnode.training.batches import Batches, augment, derive_seed
from fastnode.training.config import Config
from fastnode.training.evaluation import evaluate, predict, score, solvers_of
from fastnode.training.folder_lock import FolderLock
from fastnode.training.models import (
    build_model,
    build_objective,
    build_optimizer,
    check_same_table,
    config_of,
    learning_rate,
    load_optimizer,
    load_parameters,
    training_nfe,
)

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.json"
#: Parts of a run at whose ends the loss is recorded and progress reported.
INTERVALS = 100


class Progress(NamedTuple):
    """What is reported at the end of each interval; the loss is the interval's mean."""

    step: int
    steps: int
    loss: float
    samples_per_second: float


class Trainer:
    """One run: `config` on `data` with the nets of `recipe`, its files in the folder `out`.

    Args:
        out: folder for checkpoint.pt and metrics.json; made if absent. Only rank 0 writes.
        device: where the nets and the training data live.
        checkpoint_every: steps between checkpoints; it does not change the result.
        resume: continue from the checkpoint in `out`, if there is one. With more steps than it was
            to have the run goes on to that number; schedules are from there on those of a run of
            that many steps, and one without a schedule ends as if it had been begun so.

    Attributes:
        model: the nets, with their present parameters.
        step: optimiser steps taken.
        finished: whether the run is at its end.

    Raises:
        ValueError: `out` holds a run already and `resume` is off, or another process has a run in
            it; the checkpoint is damaged, or of a run with other settings or data.
        OSError: `out` cannot be written.
    """

    def __init__(
        self,
        config: Config,
        data: Dataset,
        recipe: Recipe,
        out: str | Path,
        *,
        device: str | torch.device = "cpu",
        checkpoint_every: int = 1000,
        resume: bool = False,
    ) -> None:
        if checkpoint_every < 1:
            raise ValueError(f"checkpoint_every must be 1 or more, got {checkpoint_every}")
        self.config, self.data, self.recipe, self.out = config, data, recipe, Path(out)
        self.device, self.checkpoint_every = torch.device(device), checkpoint_every
        self.distributed = config.processes > 1
        self.rank = dist.get_rank() if self.distributed else 0

        self.model = build_model(config, recipe).to(self.device)
        self.clip = recipe.clip_simfree if config.method == "simfree" else recipe.clip_node
        parameters = list(self.model.parameters())
        self.optimizer = build_optimizer(parameters, config, recipe)
        self.generator = torch.Generator(self.device)
        self.precision = getattr(torch, config.precision)
        self.x, self.y = data.x_train.to(self.device), data.y_train.to(self.device)
        self.batches = Batches(len(self.x), config.batch, config.seed, self.rank, config.processes)
        self.validates = recipe.patience is not None and len(data.x_valid) > 0

        self.step = 0
        self.best: dict[str, Any] = {"value": math.nan, "step": 0, "model": {}}
        self.history: list[dict[str, float]] = []
        self.finished = False
        self._begin_interval()
        self._folder_lock: FolderLock | None = None
        self._open(resume)
        self.objective = build_objective(self.model, recipe)
        # A loss through a solver mixes samples by the common step, and runs as it is.
        engine = "auto" if config.method == "simfree" else "eager"
        self._native_step = TrainStep(
            self.objective, self.optimizer, _call, self.clip, engine=engine
        )
        self._native_step.steps = self.step

    def run(
        self,
        report: Callable[[Progress], None] = lambda progress: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any] | None:
        """Trains to the end, or until `stop()`; either leaves a checkpoint.

        Returns:
            At the end the test results, as `evaluate` gives them (metrics.json holds them too);
            None if stopped before, and on ranks other than 0.

        Raises:
            FloatingPointError: the loss is no longer finite; the last checkpoint stays.
        """
        self._lock()
        try:
            with self._shared_gradients():
                self._train(report, stop)
            return self._evaluate() if self.finished and self.rank == 0 else None
        finally:
            self._unlock()

    def _evaluate(self) -> dict[str, Any]:
        if self.best["model"]:
            self.model.load_state_dict(self.best["model"])
        results = evaluate(self.model, self.data, solvers_of(self.recipe, self.config.tolerance))
        self._write_metrics(results)
        return results

    @contextlib.contextmanager
    def _shared_gradients(self) -> Iterator[None]:
        if not self.distributed:
            yield
            return
        alone = self.objective
        self.objective = DistributedDataParallel(alone)
        try:
            yield
        finally:
            # Otherwise gloo's threads live until the interpreter exits, where they abort.
            self.objective = alone
            gc.collect()

    def _train(self, report: Callable[[Progress], None], stop: Callable[[], bool]) -> None:
        config = self.config
        every = max(1, config.steps // INTERVALS)
        stopped = False
        while not (self.finished or stopped):
            until = min(config.steps, _next(self.step, every))
            until = min(until, _next(self.step, self.checkpoint_every))
            if self.validates:
                until = min(until, _next(self.step, config.eval_every))
            self._advance(until, stop)
            self._check_loss()
            at_end = self.step == config.steps
            if self._interval["steps"] and (at_end or self.step % every == 0):
                report(self._end_interval())
            if self.validates and (at_end or self.step % config.eval_every == 0):
                self._validate()
            self.finished = self._anywhere(at_end or self._out_of_patience())
            stopped = not self.finished and self._anywhere(stop())
            if self.finished or stopped or self.step % self.checkpoint_every == 0:
                self._save()

    def _advance(self, until: int, stop: Callable[[], bool]) -> None:
        started = time.perf_counter()
        # Several processes must stop at the same step, so they ask only between intervals.
        while self.step < until and (self.distributed or not stop()):
            self._train_step()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._interval["seconds"] += time.perf_counter() - started

    def _train_step(self) -> None:
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.recipe, self.step)
        self.generator.manual_seed(derive_seed(config.seed, "step", self.step, self.rank))
        rows = self.batches.indices(self.step).to(self.device)
        x, y = (self._rows(each, rows) for each in (self.x, self.y))
        if self.data.name == "cifar10":
            x = augment(x, self.generator)
        if self.model.regularizer is not None:
            self.model.regularizer.step = self.step
        if self.distributed:
            # The gradients are averaged in the backward pass.
            self.optimizer.zero_grad()
            losses = self.objective(x, y, self.generator)
            losses.total.backward()
            if self.clip is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            self.optimizer.step()
        else:
            losses = self._native_step(x, y, generator=self.generator)
        self.step += 1
        self._interval["steps"] += 1
        self._interval["nfe"] += training_nfe(self.model)
        for name, value in losses._asdict().items():
            self._losses[name] = self._losses.get(name, 0) + value.detach()

    def _rows(self, data: Tensor, rows: Tensor) -> Tensor:
        """Some of the samples, in the precision of the run."""
        picked = data.index_select(0, rows)
        return picked.to(self.precision) if picked.is_floating_point() else picked

    def _check_loss(self) -> None:
        total = float(self._losses.get("total", 0.0))
        if not math.isfinite(total):
            raise FloatingPointError(
                f"the training loss became {total} before step {self.step}; try a lower lr"
            )

    def _validate(self) -> None:
        if self.rank != 0:
            return
        # With the accurate solver: by one Euler step a simulation-free model would be chosen for a
        # chance error of that step.
        outputs, _ = predict(self.model, self.data.x_valid, solvers_of(self.recipe)[-1])
        value = score(self.data, self.data.y_valid, outputs)
        sign = 1 if self.data.task == "classification" else -1
        if not self.best["model"] or sign * value > sign * self.best["value"]:
            copy = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
            self.best = {"value": value, "step": self.step, "model": copy}

    def _out_of_patience(self) -> bool:
        if self.recipe.patience is None or not self.best["model"]:
            return False
        return self.step - self.best["step"] >= self.recipe.patience * self.config.eval_every

    def _anywhere(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if not self.distributed:
            return flag
        shared = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return shared.item() > 0

    def _begin_interval(self) -> None:
        self._losses: dict[str, Any] = {}
        self._interval: dict[str, Any] = {"steps": 0, "seconds": 0.0, "nfe": 0}

    def _end_interval(self) -> Progress:
        steps, seconds = self._interval["steps"], self._interval["seconds"]
        sums = torch.stack(list(self._losses.values()))
        if self.distributed:
            dist.all_reduce(sums)
        means = (sums / (steps * self.config.processes)).tolist()
        losses = dict(zip(self._losses, means, strict=True))
        rate = steps * self.config.batch / seconds
        entry = {"step": self.step, "seconds": seconds, "samples_per_second": rate}
        self.history.append(entry | {"nfe_per_step": self._interval["nfe"] / steps} | losses)
        self._begin_interval()
        return Progress(self.step, self.config.steps, losses["total"], rate)

    def _open(self, resume: bool) -> None:
        """Takes the folder until the end of `run`, and what is in it if the run is resumed."""
        path = self.out / CHECKPOINT
        if self.rank == 0:
            checkpoint.make_folder(self.out)
        self._lock()
        try:
            if path.exists():
                if not resume:
                    raise ValueError(f"{self.out} holds a run already; resume it or choose another")
                self._restore(path)
            # A folder that cannot be written is reported before the first step.
            if self.rank == 0 and not self.finished:
                self._write_metrics(None)
        except BaseException:
            self._unlock()
            raise

    def _lock(self) -> None:
        if self.rank == 0 and self._folder_lock is None:
            self._folder_lock = FolderLock(self.out)

    def _unlock(self) -> None:
        if self._folder_lock is not None:
            self._folder_lock.release()
            self._folder_lock = None

    def _restore(self, path: Path) -> None:
        state = checkpoint.load(path)
        with checkpoint.named(path):
            before = config_of(path, state)
            longer = before.steps < self.config.steps
            if before != (replace(self.config, steps=before.steps) if longer else self.config):
                differences = before.differences(self.config)
                raise ValueError(f"{path} is of a run with other settings: {differences}")
            check_same_table(path, state, self.data)
            for parameters in (state["best"]["model"] or state["model"], state["model"]):
                load_parameters(path, self.model, parameters)
            load_optimizer(path, self.optimizer, state["optimizer"])
            # One that was stopped early, by its validations, stays at its end.
            goes_on = longer and state["step"] == before.steps
            self.step, self.finished = int(state["step"]), bool(state["finished"]) and not goes_on
            self.best, self.history = state["best"], list(state["history"])
            self.best |= {"value": float(self.best["value"]), "step": int(self.best["step"])}
            for name, kind in (("steps", int), ("seconds", float), ("nfe", int)):
                self._interval[name] = kind(state["interval"][name])
            if not 0 <= self._interval["steps"] <= self.step:
                raise ValueError(f"{path} has an interval of {self._interval['steps']} steps")
            self._losses = {
                name: torch.as_tensor(value).reshape(()).to(self.device)
                for name, value in state["losses"].items()
            }
            # A history that cannot be written to metrics.json is reported here, not in the run.
            json.dumps(summary(self, None))

    def _save(self) -> None:
        if self.rank != 0:
            return
        state = {
            "config": asdict(self.config),
            "table": None if self.data.table is None else asdict(self.data.table),
            "step": self.step,
            "finished": self.finished,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "history": self.history,
            "interval": self._interval,
            "losses": self._losses,
        }
        checkpoint.save(self.out / CHECKPOINT, state)
        self._write_metrics(None)

    def _write_metrics(self, results: dict[str, Any] | None) -> None:
        checkpoint.write_json(self.out / METRICS, summary(self, results))


def _call(objective: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Any:
    return objective(x, y, generator)


def _next(step: int, every: int) -> int:
    return (step // every + 1) * every


def summary(run: Trainer, results: dict[str, Any] | None) -> dict[str, Any]:
    """The run so far, as JSON has it.

    `history` has a row for each interval: the last step, mean loss and its parts, seconds spent on
    training steps (validation and checkpoints left out), samples per second and evaluations of the
    field per step; `seconds`, `samples_per_second` and `nfe_per_step` are those of all rows.
    `validation` is the best one (RMSE or accuracy) and its step. `results` are those of `evaluate`
    at the end of the run, None before.
    """
    seconds = sum(row["seconds"] for row in run.history)
    steps = run.history[-1]["step"] if run.history else 0
    nfe = _mean_per_step(run.history, "nfe_per_step")
    best = run.best
    return {
        "config": asdict(run.config),
        "data": run.data.source,
        "torch": torch.__version__,
        "device": run.device.type,
        "threads": torch.get_num_threads(),
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "step": run.step,
        "finished": run.finished,
        "seconds": seconds,
        "samples_per_second": steps * run.config.batch / seconds if seconds else None,
        "nfe_per_step": nfe,
        "validation": {key: best[key] for key in ("step", "value")} if best["model"] else None,
        "results": results,
        "history": run.history,
    }


def _mean_per_step(history: list[dict[str, Any]], name: str) -> float | None:
    total, before = 0.0, 0
    for row in history:
        total += row[name] * (row["step"] - before)
        before = row["step"]
    return total / before if before else None
