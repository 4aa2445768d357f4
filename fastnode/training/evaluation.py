"""Scores of a trained model, for each solver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastnode.datasets import Dataset
from fastnode.nn import EncodedODE, Recipe
from fastnode.training.config import Config

TOLERANCE = 1e-3
#: Rows at once, fewer where a row is a series.
_ROWS = 1024


class Solver(NamedTuple):
    """A method with its `steps` (of a fixed-step method) or `tolerance` (of the others)."""

    name: str
    method: str
    steps: int | None = None
    tolerance: float = TOLERANCE


EULER_1 = Solver("euler-1", "euler", 1)
DOPRI5 = Solver("dopri5", "dopri5")
SOLVERS = (EULER_1, *(Solver(f"euler-{n}", "euler", n) for n in (2, 10, 20)), DOPRI5)


def solvers_of(recipe: Recipe, tolerance: float | None = None) -> tuple[Solver, ...]:
    """`SOLVERS` where training without simulation is possible; else that of the recipe."""
    if recipe.label_noise is not None:
        return SOLVERS
    tolerance = recipe.tolerance if tolerance is None else tolerance
    return (Solver(recipe.method, recipe.method, tolerance=tolerance),)


def solver_named(name: str | None, config: Config, recipe: Recipe) -> Solver:
    """The solver of a name; of None that of training: one Euler step without simulation.

    Raises:
        ValueError: the name is none of `solvers_of`.
    """
    solvers = solvers_of(recipe, config.tolerance)
    if name is None:
        return solvers[0] if config.method == "simfree" else solvers[-1]
    for solver in solvers:
        if solver.name == name:
            return solver
    known = ", ".join(solver.name for solver in solvers)
    raise ValueError(f"solver must be one of {known}, got {name!r}")


@torch.no_grad()
def predict(model: EncodedODE, x: Tensor, solver: Solver) -> tuple[Tensor, float]:
    """Predictions in evaluation mode, on the CPU, and the mean NFE per batch of at most 1024 rows.

    x is [N, ...]; the predictions are logits [N, classes], standardised values [N, 1] or series
    [N, T, D].
    """
    parameter = next(model.parameters())
    was_training = model.training
    model.eval()
    outputs, evaluations = [], 0
    for part in x.split(_ROWS):
        part = part.to(parameter.device, parameter.dtype)
        output = model(part, solver.method, solver.steps, solver.tolerance, solver.tolerance)
        outputs.append(output.cpu())
        evaluations += model.nfe
    model.train(was_training)
    return torch.cat(outputs), evaluations / len(outputs)


def metric_name(data: Dataset) -> str:
    return {"classification": "accuracy", "regression": "rmse", "interpolation": "mse"}[data.task]


def score(data: Dataset, y: Tensor, outputs: Tensor) -> float:
    """Accuracy, the share of right classes; RMSE in the original units of y; or the mean squared
    error of the observed values of series."""
    if data.task == "classification":
        return (outputs.argmax(1) == y).double().mean().item()
    if data.task == "interpolation":
        truth, seen = y.double().unbind(2)
        return ((seen * (outputs - truth).square()).sum() / seen.sum()).item()
    return (outputs.double() - y.double()).square().mean().sqrt().item() * data.y_std


def evaluate(
    model: EncodedODE, data: Dataset, solvers: Sequence[Solver] = SOLVERS
) -> dict[str, Any]:
    """Scores on the test part for every solver.

    Returns:
        `metric`: accuracy, rmse or mse; `solvers`: by name that metric and the mean NFE;
        `disagreement`: for classification, the share of samples for which the first and the last
        of several solvers predict different classes.
    """
    metric = metric_name(data)
    outputs, rows = {}, {}
    for solver in solvers:
        outputs[solver], nfe = predict(model, data.x_test, solver)
        rows[solver.name] = {metric: score(data, data.y_test, outputs[solver]), "nfe": nfe}
    results = {"metric": metric, "solvers": rows}
    if data.task == "classification" and len(solvers) > 1:
        differ = outputs[solvers[0]].argmax(1) != outputs[solvers[-1]].argmax(1)
        results["disagreement"] = differ.double().mean().item()
    return results
