"""A data set, recipe and config of a run that takes a quarter of a second."""

import torch
from torch import nn

from fastnode.datasets import Dataset
from fastnode.nn import MLPField, Recipe
from fastnode.nn.recipes import Nets
from fastnode.training import Config

#: What differs between two runs of the same.
TIMES = ("seconds", "samples_per_second")


def make_nets(inputs, outputs):
    return lambda: Nets(
        encoder=nn.Sequential(nn.Linear(inputs, 8), nn.BatchNorm1d(8)),
        label_encoder=nn.Linear(outputs, 8),
        decoder=nn.Linear(8, outputs),
        field=MLPField(8, 8),
    )


def make_run(task, method, **settings):
    """A tiny data set, recipe and config."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=generator)
    if task == "classification":
        y, outputs = x[:, :3].argmax(1), 3
    else:
        y, outputs = x[:, :1] * x[:, 1:2], 1
    parts = {}
    for name, rows in (("train", x[:40]), ("valid", x[40:50]), ("test", x[50:])):
        parts |= {f"x_{name}": rows}
    for name, rows in (("train", y[:40]), ("valid", y[40:50]), ("test", y[50:])):
        parts |= {f"y_{name}": rows}
    classes = 3 if task == "classification" else None
    name = "digits" if classes else "uci/yacht"
    data = Dataset(name=name, task=task, num_classes=classes, source="test", y_std=2.0, **parts)
    recipe = Recipe(
        name=name,
        task=task,
        num_classes=classes,
        label_noise=3.0,
        lr=1e-2,
        schedule="cosine",
        steps=12,
        batch=16,
        make_nets=make_nets(5, outputs),
        clip_simfree=1.0,
        patience=100 if task == "regression" else None,
    )
    values = {"dataset": name, "method": method, "steps": 12, "batch": 16, "lr": 1e-2}
    config = Config(**{**values, "eval_every": 3, **settings})
    return config, data, recipe


def same(one, other):
    """Whether two nests of dicts, lists, tensors and values are equal, bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            key in TIMES or same(one[key], other[key]) for key in one
        )
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return one == other or (one != one and other != other)
