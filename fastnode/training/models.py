"""The nets of a run: built, wrapped in what is minimised, and read back from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnode.datasets import Dataset, load
from fastnode.nn import EncodedODE, LossModule, Recipe, SimulationFreeNODE, recipe
from fastnode.regularize import (
    RNODE,
    STEER,
    Exponential,
    Global,
    Local,
    Regularizer,
    TayNODE,
)
from fastnode.training import checkpoint
from fastnode.training.config import Config

#: Half the width of the interval from which STEER draws the end of the unit interval.
STEER_WIDTH = 0.5


class TaskLoss(NamedTuple):
    """A training loss without further parts; a scalar."""

    total: Tensor


class RegularizedLoss(NamedTuple):
    """``total = task + regularization``, scalars."""

    total: Tensor
    task: Tensor
    regularization: Tensor


class SupervisedLoss(nn.Module):
    """Cross-entropy or mean squared error of the prediction through the solver."""

    def __init__(self, model: EncodedODE, task: str) -> None:
        super().__init__()
        self.model = model
        self.loss = F.cross_entropy if task == "classification" else F.mse_loss

    def forward(
        self, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> TaskLoss | RegularizedLoss:
        regularizer = self.model.regularizer
        if regularizer is None:
            return TaskLoss(self.loss(self.model(x), y))
        regularizer.generator = generator
        task = self.loss(self.model(x), y)
        penalty = self.model.regularization
        return RegularizedLoss(task + penalty, task, penalty)


def recipe_for(data: Dataset) -> Recipe:
    """The nets and hyper-parameters for a data set."""
    return recipe(data.name, data.x_train.shape[1] if data.task == "regression" else None)


def build_model(config: Config, recipe: Recipe) -> EncodedODE:
    """The nets of `config`, initialised from its seed; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.method == "simfree":
            return recipe.build_simfree(config.path)
        return recipe.build_node(regularizer=build_regularizer(config))


def build_regularizer(config: Config) -> Regularizer | None:
    """The regulariser of `config`, if it has one."""
    name, first, last = (
        config.regularizer,
        config.regularizer_weight,
        config.regularizer_weight_end,
    )
    if name == "none":
        return None
    if name == "steer":
        return STEER(STEER_WIDTH if first is None else first)
    weights: dict[str, Any] = {}
    if first is not None:
        schedule = first if last is None else Exponential(first, last, config.steps)
        names = ("kinetic", "jacobian") if name == "rnode" else ("weight",)
        weights = dict.fromkeys(names, schedule)
    if name == "rnode":
        return RNODE(**weights)
    if name == "taynode":
        return TayNODE(**weights)
    family, kind = name.split("-")
    return Local(mode=kind, **weights) if family == "local" else Global(kind=kind, **weights)


def build_objective(model: EncodedODE, task: str) -> nn.Module:
    """A module that takes x, y and a generator and returns a named tuple with `total` first."""
    if isinstance(model, SimulationFreeNODE):
        return LossModule(model)
    return SupervisedLoss(model, task)


def training_nfe(model: EncodedODE) -> int:
    """Evaluations of the field in the last training step: one if nothing was simulated."""
    return 1 if isinstance(model, SimulationFreeNODE) else model.nfe


def config_of(path: Path, state: dict[str, Any]) -> Config:
    """The settings stored in a checkpoint; ValueError naming its `path` if they are not valid."""
    try:
        return Config.from_dict(state["config"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no valid settings: {error}") from error


def load_parameters(path: Path, model: nn.Module, parameters: dict[str, Any]) -> None:
    """Loads them into the model; ValueError naming the checkpoint's `path` if they do not fit."""
    try:
        model.load_state_dict(parameters)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"{path} does not fit the model: {reason}") from error


def load_optimizer(path: Path, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads its state; ValueError naming the checkpoint's `path` if it does not fit."""
    try:
        optimizer.load_state_dict(state)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} has an optimiser state that does not fit: {error}") from error
    for parameter, values in optimizer.state.items():
        moments = [values.get("exp_avg"), values.get("exp_avg_sq")]
        if any(not isinstance(m, Tensor) or m.shape != parameter.shape for m in moments):
            raise ValueError(f"{path} has an optimiser state that does not fit the model")


class Restored(NamedTuple):
    """A trained model with the data that it was trained on."""

    config: Config
    step: int
    data: Dataset
    model: EncodedODE


def restore(path: Path, device: torch.device) -> Restored:
    """The model of a checkpoint: the parameters that validated best, or the last ones.

    Raises:
        OSError, ValueError: the checkpoint or its data set cannot be read, or do not fit.
    """
    state = checkpoint.load(path)
    config = config_of(path, state)
    data = load(config.dataset, config.split)
    model = build_model(config, recipe_for(data))
    best = state["best"]
    source = best if best["model"] else state
    load_parameters(path, model, source["model"])
    return Restored(config, source["step"], data, model.to(device))
