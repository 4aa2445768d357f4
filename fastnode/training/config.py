"""What decides the result of a training run, down to the last bit."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from fastnode.flow import get_path
from fastnode.nn.recipes import EMBEDDINGS

METHODS = ("simfree", "node")
#: What fastnode.regularize has, by the names of the command line.
REGULARIZERS = (
    "none",
    "local-unbiased",
    "local-biased",
    "global-error",
    "global-stiffness",
    "steer",
    "rnode",
    "taynode",
)
PRECISIONS = ("float32", "float64")
_LEAST = {"split": 0, "seed": 0, "steps": 1, "batch": 1, "eval_every": 1, "processes": 1}


@dataclass(frozen=True)
class Config:
    """Settings of a run; two runs with equal ones end with the same parameters on the CPU.

    Args:
        dataset: name as in `fastnode.datasets.NAMES`; split: its split.
        method: `simfree` (flow matching in the embedding space) or `node` (backpropagation
            through the solver).
        path: interpolation path of `simfree`.
        seed: seeds initialisation, batches, times and label noise.
        steps: optimiser steps; batch: samples per step, over all processes together.
        lr: learning rate of AdamW.
        eval_every: steps between validations, where the set has a validation part.
        processes: how many processes share each batch.
        regularizer: of `node`, one of `REGULARIZERS`.
        regularizer_weight: its weight (both weights of `rnode`, the b of `steer`); its own default
            if None.
        regularizer_weight_end: the weight at the end of the run, to which it goes exponentially;
            None for a constant one.
        hold_k1: whether local regularisation holds the first slope constant.
        recipe: name of the nets and their hyper-parameters; the data set's own if None.
        precision: `float32` or `float64`, of parameters and data.
        tolerance: rtol and atol of `node`; the recipe's own if None.
        zero_probability, label_noise, embedding: of `simfree`; label_noise the recipe's own if
            None, embedding as in `fastnode.nn.Recipe.build_simfree`.

    Raises:
        TypeError, ValueError: names the setting, what came and what was expected.
    """

    dataset: str
    method: str
    steps: int
    batch: int
    lr: float
    eval_every: int
    path: str = "linear"
    split: int = 0
    seed: int = 0
    processes: int = 1
    regularizer: str = "none"
    regularizer_weight: float | None = None
    regularizer_weight_end: float | None = None
    hold_k1: bool = True
    recipe: str | None = None
    precision: str = "float32"
    tolerance: float | None = None
    zero_probability: float = 0.1
    label_noise: float | None = None
    embedding: str = "learned"

    def __post_init__(self) -> None:
        for name in ("dataset", "method", "path"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a str, got {getattr(self, name)!r}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an int, got {value!r}")
            if value < least:
                raise ValueError(f"{name} must be {least} or more, got {value}")
        if not isinstance(self.lr, (int, float)) or isinstance(self.lr, bool):
            raise TypeError(f"lr must be a float, got {self.lr!r}")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr must be positive and finite, got {self.lr}")
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}; expected {' or '.join(METHODS)}")
        if not isinstance(self.hold_k1, bool):
            raise TypeError(f"hold_k1 must be a bool, got {self.hold_k1!r}")
        if not isinstance(self.recipe, (str, type(None))):
            raise TypeError(f"recipe must be a str, got {self.recipe!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be float32 or float64, got {self.precision!r}")
        if self.embedding not in EMBEDDINGS:
            known = ", ".join(EMBEDDINGS)
            raise ValueError(f"embedding must be one of {known}, got {self.embedding!r}")
        _check_number("tolerance", self.tolerance, above_zero=True)
        _check_number("label_noise", self.label_noise)
        _check_number("zero_probability", self.zero_probability, most=1.0)
        self._check_regularizer()
        get_path(self.path)
        if self.batch % self.processes:
            raise ValueError(
                f"batch must be a multiple of the {self.processes} processes, got {self.batch}"
            )

    def _check_regularizer(self) -> None:
        name = self.regularizer
        if name not in REGULARIZERS:
            raise ValueError(f"regularizer must be one of {', '.join(REGULARIZERS)}, got {name!r}")
        if name != "none" and self.method != "node":
            raise ValueError(f"regularizer {name!r} needs method 'node', got {self.method!r}")
        first, last = self.regularizer_weight, self.regularizer_weight_end
        for weight in (first, last):
            if isinstance(weight, bool) or not isinstance(weight, (int, float, type(None))):
                raise TypeError(f"regularizer_weight must be a float, got {weight!r}")
            if weight is not None and not (weight >= 0 and math.isfinite(weight)):
                raise ValueError(f"regularizer_weight must be at least 0, got {weight}")
            if weight is not None and name == "none":
                raise ValueError(f"regularizer_weight needs a regularizer, got {weight} alone")
        if last is not None and (name == "steer" or not (first and last)):
            raise ValueError(
                "regularizer_weight_end needs two positive weights and a regularizer with a "
                f"penalty, got {name!r} with {first} and {last}"
            )

    @staticmethod
    def default_eval_every(rows: int, batch: int) -> int:
        """An epoch, but at least 50 steps: on small sets the score of one epoch is mostly noise."""
        return max(50, -(-rows // max(batch, 1)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """The inverse of `asdict`; ValueError or TypeError for anything else."""
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            odd = ", ".join(sorted(map(str, names ^ set(values))))
            raise ValueError(f"config has missing or unknown entries: {odd}")
        return cls(**values)

    def differences(self, other: Config) -> str:
        """The settings in which `other` differs, in words; empty if it does not."""
        mine, theirs = asdict(self), asdict(other)
        return ", ".join(
            f"{name} {theirs[name]!r} instead of {mine[name]!r}"
            for name in mine
            if mine[name] != theirs[name]
        )


def _check_number(name: str, value: Any, above_zero: bool = False, most: float = math.inf) -> None:
    """Raises TypeError or ValueError unless it is None or a finite number in its range."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a float, got {value!r}")
    low = value > 0 if above_zero else value >= 0
    if not (low and value <= most and math.isfinite(value)):
        least = "positive" if above_zero else "at least 0"
        raise ValueError(f"{name} must be {least} and at most {most:g}, got {value}")
