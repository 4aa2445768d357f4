"""How well a trained model does, solver by solver."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastnode.datasets import Dataset
from fastnode.nn import EncodedODE

TOLERANCE = 1e-3
_ROWS = 1024


class Solver(NamedTuple):
    """A way to solve from t = 0 to t = 1; `steps` is for methods of fixed steps."""

    name: str
    method: str
    steps: int | None = None


EULER_1 = Solver("euler-1", "euler", 1)
DOPRI5 = Solver("dopri5", "dopri5")
SOLVERS = (EULER_1, *(Solver(f"euler-{n}", "euler", n) for n in (2, 10, 20)), DOPRI5)


@torch.no_grad()
def predict(model: EncodedODE, x: Tensor, solver: Solver) -> tuple[Tensor, float]:
    """Predictions in evaluation mode, on the CPU, and the mean NFE per batch of at most 1024 rows.

    x is [N, ...]; the predictions are logits [N, classes] or standardised values [N, 1].
    dopri5 runs with rtol = atol = 1e-3.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    outputs, evaluations = [], 0
    for part in x.split(_ROWS):
        output = model(part.to(device), solver.method, solver.steps, TOLERANCE, TOLERANCE)
        outputs.append(output.cpu())
        evaluations += model.nfe
    model.train(was_training)
    return torch.cat(outputs), evaluations / len(outputs)


def metric_name(data: Dataset) -> str:
    return "accuracy" if data.task == "classification" else "rmse"


def score(data: Dataset, y: Tensor, outputs: Tensor) -> float:
    """Accuracy, the share of right classes, or RMSE in the original units of y."""
    if data.task == "classification":
        return (outputs.argmax(1) == y).double().mean().item()
    return (outputs.double() - y.double()).square().mean().sqrt().item() * data.y_std


def evaluate(model: EncodedODE, data: Dataset) -> dict[str, Any]:
    """Scores on the test part for every solver of `SOLVERS`.

    Returns:
        `metric`: accuracy or rmse; `solvers`: by name that metric and the mean NFE;
        `disagreement`: for classification, the share of samples for which one Euler step and
        dopri5 predict different classes.
    """
    metric = metric_name(data)
    outputs, rows = {}, {}
    for solver in SOLVERS:
        outputs[solver], nfe = predict(model, data.x_test, solver)
        rows[solver.name] = {metric: score(data, data.y_test, outputs[solver]), "nfe": nfe}
    results = {"metric": metric, "solvers": rows}
    if data.task == "classification":
        differ = outputs[EULER_1].argmax(1) != outputs[DOPRI5].argmax(1)
        results["disagreement"] = differ.double().mean().item()
    return results
