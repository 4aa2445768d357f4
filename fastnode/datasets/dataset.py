"""A data set as tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fastnode.datasets.table import Table


@dataclass(frozen=True)
class Dataset:
    """Inputs and targets, split into training, validation (for early stopping) and test.

    `x_*` are float32: [N, D] for tables, digits and mnist, [N, 3, 32, 32] for cifar10. `y_*` are
    int64 class numbers [N] for classification and standardised float32 values [N, 1] for
    regression; `y * y_std + y_mean` has the original units. For interpolation they are series
    [N, T, 2, D] at common times: values, and 1 where they were observed, 0 elsewhere; `x_*` is the
    same for physionet and the state [N, D] at the first time for spiral. Sets without early
    stopping have an empty validation part. `source` says where the data came from; `table` is the
    encoding of a file of one's own, which is called `table`.
    """

    name: str
    task: Literal["classification", "regression", "interpolation"]
    x_train: Tensor
    y_train: Tensor
    x_valid: Tensor
    y_valid: Tensor
    x_test: Tensor
    y_test: Tensor
    source: str
    num_classes: int | None = None
    y_mean: float = 0.0
    y_std: float = 1.0
    table: Table | None = None
