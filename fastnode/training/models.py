"""The nets of a run: built, wrapped in their loss, and read from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnode.datasets import Dataset, Table, load
from fastnode.nn import EncodedODE, LossModule, Recipe, SimulationFreeNODE, recipe
from fastnode.nn.latent import GRUEncoder
from fastnode.nn.recipe_book import data_of
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

#: Of the schedule "inverse", for each step.
INVERSE_RATE = 1e-5
#: The state that optimisers keep for each parameter, in its shape.
MOMENTS = {
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq"),
    torch.optim.Adamax: ("exp_avg", "exp_inf"),
}


class TaskLoss(NamedTuple):
    """A training loss without further parts; a scalar."""

    total: Tensor


class RegularizedLoss(NamedTuple):
    """``total = task + regularization``, scalars."""

    total: Tensor
    task: Tensor
    regularization: Tensor


class SupervisedLoss(nn.Module):
    """Cross-entropy, or (masked) mean squared error, of the prediction through the solver.

    With a spread sigma the error is over 2 sigma^2 and a latent ODE's divergence is added: minus
    its evidence lower bound, with means in place of sums in both parts.
    """

    def __init__(self, model: EncodedODE, recipe: Recipe) -> None:
        super().__init__()
        self.model = model
        losses = {"classification": F.cross_entropy, "regression": F.mse_loss}
        self.loss = losses.get(recipe.task, masked_mse)
        self.scale = 1.0 if recipe.spread is None else 1 / (2 * recipe.spread**2)

    def forward(
        self, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> TaskLoss | RegularizedLoss:
        regularizer, encoder = self.model.regularizer, self.model.encoder
        latent = isinstance(encoder, GRUEncoder)
        if latent:
            encoder.generator = generator
        if regularizer is not None:
            regularizer.generator = generator
        task = self.scale * self.loss(self.model(x), y)
        if latent:
            task = task + encoder.divergence
        if regularizer is None:
            return TaskLoss(task)
        penalty = self.model.regularization
        return RegularizedLoss(task + penalty, task, penalty)


def masked_mse(values: Tensor, series: Tensor) -> Tensor:
    """Mean squared error [B, T, D] of what was observed, series being [B, T, 2, D]."""
    truth, seen = series.unbind(2)
    return (seen * (values - truth).square()).sum() / seen.sum().clamp(min=1)


def recipe_for(data: Dataset, name: str | None = None) -> Recipe:
    """The nets and hyper-parameters of a name; the name defaults to that of the data set.

    Raises:
        ValueError: an unknown name, or a recipe for another data set.
    """
    chosen = data.name if name is None else name
    if data.table is not None:
        made = recipe(chosen, len(data.table.features), data.num_classes)
    else:
        made = recipe(chosen, data.x_train.shape[1] if data.task == "regression" else None)
    if data_of(chosen) != data_of(data.name):
        raise ValueError(f"recipe {chosen!r} is for data set {data_of(chosen)}, got {data.name!r}")
    return made


def build_model(config: Config, recipe: Recipe) -> EncodedODE:
    """The nets of `config`, initialised from its seed; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.method == "simfree":
            model: EncodedODE = recipe.build_simfree(
                config.path, config.zero_probability, config.label_noise, config.embedding
            )
        else:
            tolerance = config.tolerance
            model = recipe.build_node(
                tolerance, tolerance, build_regularizer(config, recipe.own_times)
            )
    return model.to(getattr(torch, config.precision))


def build_regularizer(config: Config, per_sample: bool = False) -> Regularizer | None:
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
    if family == "local":
        return Local(mode=kind, per_sample=per_sample, hold_k1=config.hold_k1, **weights)
    return Global(kind=kind, **weights)


def build_objective(model: EncodedODE, recipe: Recipe) -> nn.Module:
    """A module that takes x, y and a generator and returns a named tuple with `total` first."""
    if isinstance(model, SimulationFreeNODE):
        return LossModule(model)
    return SupervisedLoss(model, recipe)


def training_nfe(model: EncodedODE) -> int:
    """Evaluations of the field in the last training step: one if nothing was simulated."""
    return 1 if isinstance(model, SimulationFreeNODE) else model.nfe


def build_optimizer(
    parameters: Iterable[nn.Parameter], config: Config, recipe: Recipe
) -> torch.optim.Optimizer:
    """The recipe's optimiser, at the first step's learning rate."""
    if recipe.optimizer == "adamax":
        return torch.optim.Adamax(parameters, config.lr)
    return torch.optim.AdamW(parameters, config.lr, weight_decay=0.0, fused=True)


def learning_rate(config: Config, recipe: Recipe, step: int) -> float:
    """That of a step, by the recipe's schedule."""
    if recipe.schedule == "none":
        return config.lr
    if recipe.schedule == "inverse":
        return config.lr / (1 + INVERSE_RATE * step)
    share = 0.5 * (1 + math.cos(math.pi * step / config.steps))
    return recipe.lr_end + (config.lr - recipe.lr_end) * share


def config_of(path: Path, state: dict[str, Any]) -> Config:
    """The settings stored in a checkpoint; ValueError naming its `path` if they are not valid."""
    try:
        config = Config.from_dict(state["config"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no valid settings: {error}") from error
    if not 0 <= state["step"] <= config.steps:
        raise ValueError(f"{path} is at step {state['step']} of {config.steps}")
    return config


def load_parameters(path: Path, model: nn.Module, parameters: dict[str, Any]) -> None:
    """Loads them into the model; ValueError naming the checkpoint's `path` if they do not fit."""
    try:
        for name, own in model.state_dict().items():
            # torch would cast them: complex numbers to their real parts, integers to floats.
            if name in parameters and parameters[name].dtype != own.dtype:
                raise TypeError(f"{name} is {parameters[name].dtype}, expected {own.dtype}")
        model.load_state_dict(parameters)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"{path} does not fit the model: {reason}") from error


def load_optimizer(path: Path, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads its moments; ValueError naming the checkpoint's `path` if they do not fit.

    Its settings are left as they are: they follow from those of the run.
    """
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    moments = MOMENTS[type(optimizer)]
    for index, values in state["state"].items():
        fits = 0 <= index < len(parameters) and values.keys() == {"step", *moments}
        fits = fits and all(isinstance(each, Tensor) for each in values.values())
        fits = fits and values["step"].dim() == 0 and values["step"].is_floating_point()
        if not fits or any(_unlike(values[name], parameters[index]) for name in moments):
            raise ValueError(f"{path} has an optimiser state that does not fit the model")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state["state"]})


def _unlike(one: Tensor, other: Tensor) -> bool:
    return one.shape != other.shape or one.dtype != other.dtype


def check_same_table(path: Path, state: dict[str, Any], data: Dataset) -> None:
    """Raises ValueError if a file of one's own is not as it was when the run of `path` began."""
    if state.get("table") != (None if data.table is None else asdict(data.table)):
        raise ValueError(f"{path} is of a run on other data: {data.source} has changed")


class Restored(NamedTuple):
    """A trained model with the data that it was trained on."""

    config: Config
    step: int
    data: Dataset
    recipe: Recipe
    model: EncodedODE


def restore(path: Path, device: torch.device) -> Restored:
    """The model of a checkpoint: the parameters that validated best, or the last ones.

    Raises:
        OSError, ValueError: the checkpoint or its data set cannot be read, or do not fit.
    """
    state, config = _read(path)
    data = load(config.dataset, config.split, config.target, config.task, config.seed)
    with checkpoint.named(path):
        check_same_table(path, state, data)
        step = int(_source(state)["step"])
    recipe = recipe_for(data, config.recipe)
    model = _trained(path, state, config, recipe)
    return Restored(config, step, data, recipe, model.to(device))


class Predictor(NamedTuple):
    """A model trained on a file of one's own, with the encoding of that file's columns."""

    config: Config
    table: Table
    recipe: Recipe
    model: EncodedODE


def restore_predictor(path: Path, device: torch.device) -> Predictor:
    """The model of a checkpoint, as `restore` has it, without the file that it was trained on.

    Raises:
        OSError, ValueError: the checkpoint cannot be read, or was trained on no file of one's own.
    """
    state, config = _read(path)
    if state.get("table") is None:
        raise ValueError(f"{path} was trained on {config.dataset}, not on a .csv or .npz file")
    with checkpoint.named(path):
        table = Table.from_dict(state["table"])
        made = recipe("table", len(table.features), len(table.classes) or None)
    return Predictor(config, table, made, _trained(path, state, config, made).to(device))


def _read(path: Path) -> tuple[dict[str, Any], Config]:
    state = checkpoint.load(path)
    with checkpoint.named(path):
        return state, config_of(path, state)


def _source(state: dict[str, Any]) -> dict[str, Any]:
    """Where a checkpoint has the parameters that are used, and their step."""
    return state["best"] if state["best"]["model"] else state


def _trained(path: Path, state: dict[str, Any], config: Config, recipe: Recipe) -> EncodedODE:
    model = build_model(config, recipe)
    with checkpoint.named(path):
        load_parameters(path, model, _source(state)["model"])
    return model
