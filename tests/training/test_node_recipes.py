"""Recipes that are trained through the solver: two steps of each, and what they refuse."""

import json
from dataclasses import replace

import pytest
import torch

from fastnode import datasets
from fastnode.datasets import Dataset
from fastnode.nn import recipe
from fastnode.training import CHECKPOINT, METRICS, Config, Trainer, checkpoint, recipe_for

SIZES = {"mnist": (784,), "cifar10": (3, 32, 32), "physionet": (49, 2, 41), "spiral": (2,)}
NAMES = (
    "mnist-ode",
    "cifar10-ode-small",
    "physionet-small",
    "physionet-own-small",
    "spiral",
)


def make(name, **settings):
    """A run of two steps on a few random samples."""
    generator = torch.Generator().manual_seed(0)
    dataset = name.split("-")[0]
    x = torch.rand(6, *SIZES[dataset], generator=generator)
    if dataset == "physionet":
        x[:, :, 1] = (x[:, :, 1] < 0.2).float()
        x[:, :, 0] *= x[:, :, 1]
        y = x
    elif dataset == "spiral":
        y = torch.stack([torch.rand(6, 25, 2, generator=generator), torch.ones(6, 25, 2)], dim=2)
    else:
        y = torch.arange(6)
    task = "interpolation" if y.ndim == 4 else "classification"
    parts = (x[:4], y[:4], x[:0], y[:0], x[4:], y[4:])
    data = Dataset(dataset, task, *parts, source="test", num_classes=None)
    chosen = recipe_for(data, name)
    values = {"dataset": dataset, "recipe": name, "method": "node", "steps": 2, "batch": 4}
    values |= {"lr": chosen.lr, "eval_every": 50, "tolerance": 1e-3}
    return Config(**{**values, **settings}), data, chosen


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_with_local_regularisation(tmp_path, name):
    mode = "biased" if name == "physionet-own-small" else "unbiased"
    parts = make(name, regularizer=f"local-{mode}", hold_k1=False)
    trainer = Trainer(*parts, tmp_path)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    results = trainer.run()
    assert results["metric"] == ("accuracy" if parts[1].task == "classification" else "mse")
    assert list(results["solvers"]) == ["tsit5"] and "disagreement" not in results
    assert results["solvers"]["tsit5"]["nfe"] >= 6
    after = list(trainer.model.parameters())
    changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert all(changed)
    row = json.loads((tmp_path / METRICS).read_text())["history"][0]
    assert row["regularization"] > 0 and not trainer.model.regularizer.hold_k1


def test_double_precision_reaches_parameters_data_and_solves(tmp_path):
    trainer = Trainer(*make("mnist-ode", precision="float64"), tmp_path)
    trainer.run()
    assert all(p.dtype == torch.float64 for p in trainer.model.parameters())
    state = checkpoint.load(tmp_path / CHECKPOINT)
    assert all(value.dtype == torch.float64 for value in state["model"].values())


def test_adamax_continues_where_it_was(tmp_path):
    parts = make("physionet-small", steps=4)
    whole = Trainer(*parts, tmp_path / "whole")
    whole.run()
    broken = Trainer(*parts, tmp_path / "broken")
    broken.run(stop=lambda: broken.step >= 2)
    resumed = Trainer(*parts, tmp_path / "broken", resume=True)
    assert resumed.step == 2 and isinstance(resumed.optimizer, torch.optim.Adamax)
    resumed.run()
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_error_of_series_counts_observations_alone(tmp_path):
    config, data, chosen = make("physionet-small")
    far = data.y_test.clone()
    far[:, :, 0] += 100 * (1 - far[:, :, 1])
    results = [
        Trainer(config, each, chosen, tmp_path / name).run()
        for name, each in (("near", data), ("far", replace(data, y_test=far)))
    ]
    assert results[0] == results[1]


def test_published_settings():
    mnist, cifar, physionet = (recipe(name) for name in ("mnist-ode", "cifar10-ode", "physionet"))
    assert (mnist.lr, mnist.steps, mnist.batch, mnist.tolerance) == (1e-3, 7500, 512, 1.4e-8)
    assert (cifar.lr, cifar.lr_end, cifar.batch, cifar.tolerance) == (3e-3, 1e-4, 32, 1e-4)
    assert (physionet.lr, physionet.optimizer, physionet.batch) == (1e-2, "adamax", 512)
    field = mnist.build_node().field
    assert field.widths == (100,) and field.activation == "tanh"
    assert cifar.build_node().encoder(torch.zeros(1, 3, 32, 32)).shape == (1, 8, 32, 32)
    for each in (mnist, cifar, physionet):
        assert each.method == "tsit5" and each.default_method == "node"


def test_a_recipe_for_other_data_is_named():
    data = datasets.load("spiral")
    with pytest.raises(ValueError, match="recipe 'mnist-ode' is for data set mnist, got 'spiral'"):
        recipe_for(data, "mnist-ode")
    with pytest.raises(ValueError, match="unknown recipe 'sprial'"):
        recipe_for(data, "sprial")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"precision": "float16"}, "precision must be float32 or float64, got 'float16'"),
        ({"tolerance": 0.0}, "tolerance must be positive"),
        ({"embedding": "tiled"}, "embedding must be one of learned"),
        ({"zero_probability": 1.5}, "zero_probability must be at least 0 and at most 1"),
        ({"label_noise": -1.0}, "label_noise must be at least 0"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        make("spiral", **settings)
