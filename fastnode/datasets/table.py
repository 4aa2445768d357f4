"""How the columns of a user's file become inputs, and predictions become what its target holds."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastnode.datasets.columns import read_columns

#: Of the files that `fastnode.datasets.load` and `Table.inputs` read.
SUFFIXES = (".csv", ".npz")


@dataclass(frozen=True)
class Table:
    """The encoding of a file of one's own, fitted to the rows that are trained on.

    Args:
        features: names of the D columns that are inputs.
        x_mean, x_std: by which each of them is standardised.
        target: name of the column that is predicted.
        classes: names of the classes in the order of their numbers; empty for regression.
        y_mean, y_std: by which the target of a regression is standardised.
        digest: of all values of the file, to see whether it has changed.
    """

    features: list[str]
    x_mean: list[float]
    x_std: list[float]
    target: str
    classes: list[str]
    y_mean: float
    y_std: float
    digest: str

    @classmethod
    def from_dict(cls, values: Any) -> Table:
        """The inverse of ``dataclasses.asdict``; ValueError for anything else."""
        names = [each.name for each in fields(cls)]
        if not isinstance(values, dict) or list(values) != names:
            raise ValueError(f"the encoding of a file must have {', '.join(names)}")
        table = cls(**values)
        lists = (table.features, table.x_mean, table.x_std, table.classes)
        texts = [table.target, table.digest]
        numbers = [table.y_mean, table.y_std]
        if all(isinstance(each, list) for each in lists):
            texts += table.features + table.classes
            numbers += table.x_mean + table.x_std
        if (
            len(texts) == 2
            or not all(isinstance(text, str) for text in texts)
            or not all(isinstance(each, float) and math.isfinite(each) for each in numbers)
            or not len(table.features) == len(table.x_mean) == len(table.x_std)
            or len(table.classes) == 1
        ):
            raise ValueError("the encoding of a file is not one of columns and their scales")
        return table

    def inputs(self, path: str | Path) -> Tensor:
        """The standardised inputs, float32 [N, D], of a csv or npz file; other columns are ignored.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a column is missing, or a cell holds no number.
        """
        path = Path(path)
        if path.suffix.lower() not in SUFFIXES:
            raise ValueError(f"data must be a .csv or .npz file, got {path}")
        columns = read_columns(path, with_target=False)
        for name in self.features:
            if name not in columns.cells:
                raise ValueError(
                    f"{path} lacks the column {name!r} of the training data; "
                    f"it has {columns.named()}"
                )
        return self.standardise(path, columns.numbers(self.features))

    def standardise(self, path: Path, x: np.ndarray) -> Tensor:
        """Inputs float64 [N, D], standardised and rounded to float32; ValueError if one overflows.

        ``path`` is named in the error.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            inputs = ((x - self.x_mean) / self.x_std).astype("f4")
        finite = np.isfinite(inputs).all(0) & np.isfinite(self.x_std)
        if not finite.all():
            name = self.features[int(finite.argmin())]
            raise ValueError(f"{path}: the numbers of column {name!r} are too large")
        return torch.from_numpy(inputs)

    def texts(self, outputs: Tensor) -> list[str]:
        """A model's outputs, logits [N, classes] or standardised values [N, 1], as the target's."""
        if self.classes:
            return [self.classes[index] for index in outputs.argmax(1).tolist()]
        values = outputs.double() * self.y_std + self.y_mean
        # As many digits as float32 has.
        return [f"{value:.9g}" for value in values[:, 0].tolist()]
