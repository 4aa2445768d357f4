"""What decides the result of a training run, down to the last bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from fastnode.datasets import TASKS
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
#: What a setting of each type may be; the last type is the one that the command line converts to.
TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
}


@dataclass(frozen=True)
class Config:
    """Settings of a run; two runs with equal ones end with the same parameters on the CPU.

    The command line makes an argument of each setting whose metadata has a help text; ``flag`` is
    a switch that turns the setting off.

    Args:
        dataset, split, target, task: what `fastnode.datasets.load` takes, `seed` being that of the
            split of a file of one's own.
        method: `simfree` (flow matching in the embedding space) or `node` (backpropagation
            through the solver).
        path: interpolation path of `simfree`.
        seed: seeds initialisation, batches, times and label noise, and the split of a file of
            one's own.
        steps: optimiser steps; batch: samples per step, over all processes together.
        lr: learning rate of AdamW.
        eval_every: steps between validations, where the set has a validation part.
        processes: how many processes share each batch.
        regularizer: of `node`, one of `REGULARIZERS`.
        regularizer_weight: its weight (both weights of `rnode`, the b of `steer`); its own default
            if None.
        regularizer_weight_end: the weight at the end of the run, to which it goes exponentially;
            None for a constant one.
        hold_k1: whether local regularisation holds the first stage derivative constant.
        recipe: name of the nets and their hyper-parameters; defaults to that of the data set.
        precision: `float32` or `float64`, of parameters and data.
        tolerance: rtol and atol of `node`; defaults to that of the recipe.
        zero_probability, label_noise, embedding: of `simfree`; label_noise defaults to that of the
            recipe, embedding as in `fastnode.nn.Recipe.build_simfree`.

    Raises:
        TypeError, ValueError: names the setting, what came and what was expected.
    """

    dataset: str = field(
        metadata={
            "help": "your own .csv or .npz file; or digits, diabetes, mnist, cifar10, physionet, "
            "spiral, uci/<name>"
        }
    )
    method: str = field(metadata={"help": "simfree or node, through the solver"})
    steps: int = field(metadata={"help": "optimiser steps", "least": 1})
    batch: int = field(metadata={"help": "samples per step, over all processes", "least": 1})
    lr: float = field(metadata={"help": "learning rate", "positive": True})
    eval_every: int = field(
        metadata={"help": "steps between validations (default: an epoch, at least 50)", "least": 1}
    )
    path: str = field(default="linear", metadata={"help": "of simfree: linear, concave or convex"})
    split: int = field(default=0, metadata={"help": "split of a UCI set", "least": 0})
    seed: int = field(default=0, metadata={"help": "seed of everything random", "least": 0})
    processes: int = field(default=1, metadata={"least": 1})
    regularizer: str = field(default="none", metadata={"help": "of node", "choices": REGULARIZERS})
    regularizer_weight: float | None = field(
        default=None,
        metadata={"help": "of the penalty, or b of steer (default: its own)", "least": 0},
    )
    regularizer_weight_end: float | None = field(
        default=None,
        metadata={"help": "reached exponentially at the end (default: constant)", "least": 0},
    )
    hold_k1: bool = field(
        default=True,
        metadata={
            "help": "of local regularisers: the gradient of the first stage derivative as well",
            "flag": "--true-gradient",
        },
    )
    recipe: str | None = field(
        default=None,
        metadata={"help": "mnist-ode, mnist-small, ... (default: that of the data set)"},
    )
    precision: str = field(
        default="float32", metadata={"help": "of parameters and data", "choices": PRECISIONS}
    )
    tolerance: float | None = field(
        default=None, metadata={"help": "rtol and atol of node", "positive": True}
    )
    zero_probability: float = field(
        default=0.1, metadata={"help": "of simfree: share at t = 0", "least": 0, "most": 1}
    )
    label_noise: float | None = field(
        default=None, metadata={"help": "of simfree: noise on embedded labels", "least": 0}
    )
    embedding: str = field(
        default="learned", metadata={"help": "of simfree", "choices": EMBEDDINGS}
    )
    target: str | None = field(
        default=None,
        metadata={"help": "of a csv file: column to predict (default: none; y of an npz file)"},
    )
    task: str | None = field(
        default=None,
        metadata={"help": "of your own file (default: found from the target)", "choices": TASKS},
    )

    def __post_init__(self) -> None:
        for setting in fields(self):
            value, annotation = getattr(self, setting.name), str(setting.type)
            kind = annotation.removesuffix(" | None")
            if value is not None or kind == annotation:
                _check(setting.name, value, kind, setting.metadata)
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}; expected {' or '.join(METHODS)}")
        self._check_regularizer()
        get_path(self.path)
        if self.batch % self.processes:
            raise ValueError(
                f"batch must be a multiple of the {self.processes} processes, got {self.batch}"
            )

    def _check_regularizer(self) -> None:
        name, first, last = self.regularizer, self.regularizer_weight, self.regularizer_weight_end
        if name != "none" and self.method != "node":
            raise ValueError(f"regularizer {name!r} needs method 'node', got {self.method!r}")
        for weight in (first, last):
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
        """The inverse of `asdict`; ValueError or TypeError for anything else.

        What has a default may be missing, as in checkpoints that are older than the setting.
        """
        names = {setting.name for setting in fields(cls)}
        needed = {setting.name for setting in fields(cls) if setting.default is MISSING}
        if not needed <= set(values) <= names:
            odd = ", ".join(sorted(map(str, (needed - set(values)) | (set(values) - names))))
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


def _check(name: str, value: Any, kind: str, limits: Mapping[str, Any]) -> None:
    """Raises TypeError or ValueError unless the value is one that the setting may have."""
    if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "bool"):
        raise TypeError(f"{name} must be a{'n' * (kind == 'int')} {kind}, got {value!r}")
    choices = limits.get("choices", (value,))
    if value not in choices:
        known = " or ".join(choices) if len(choices) == 2 else f"one of {', '.join(choices)}"
        raise ValueError(f"{name} must be {known}, got {value!r}")
    if "positive" in limits and not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite, got {value}")
    if "least" in limits:
        least, most = limits["least"], limits.get("most", math.inf)
        if not (least <= value <= most and math.isfinite(value)):
            range_ = f"{least} or more" if kind == "int" else f"at least {least}"
            limit = f" and at most {most:g}" if most < math.inf else ""
            raise ValueError(f"{name} must be {range_}{limit}, got {value}")
