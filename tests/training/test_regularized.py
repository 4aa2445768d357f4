"""Training with a regulariser: the loss, its schedule, and runs that were interrupted."""

import json

import pytest
import torch
import torch.nn.functional as F
from selection import slow_but

from fastnode.regularize import Exponential
from fastnode.training import CHECKPOINT, METRICS, REGULARIZERS, Trainer, build_model, checkpoint
from fastnode.training.batches import Batches, derive_seed
from fastnode.training.models import build_regularizer

NAMES = [name for name in REGULARIZERS if name != "none"]
TIMES = ("seconds", "samples_per_second")


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(k in TIMES or same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return one == other or (one != one and other != other)


@pytest.mark.parametrize("name", slow_but(NAMES, "local-biased"))
def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path, run_parts, name):
    parts = run_parts("classification", "node", regularizer=name, steps=8)
    whole = Trainer(*parts, tmp_path / "whole")
    whole.run()
    trainer = Trainer(*parts, tmp_path / "broken", checkpoint_every=3)
    for step in (3, 5):
        torch.manual_seed(step)
        until = step
        trainer.run(stop=lambda trainer=trainer, until=until: trainer.step >= until)
        trainer = Trainer(*parts, tmp_path / "broken", checkpoint_every=2, resume=True)
        assert trainer.step == step
    trainer.run()
    states = [checkpoint.load(tmp_path / each / CHECKPOINT) for each in ("whole", "broken")]
    assert same(*states)


def test_the_loss_is_the_task_and_the_weighted_penalty(tmp_path, run_parts, changed):
    config, data, recipe = run_parts(
        "classification",
        "node",
        regularizer="local-unbiased",
        regularizer_weight=9.0,
        regularizer_weight_end=1.0,
        steps=3,
    )
    recipe = changed(recipe, clip_node=None)
    trainer = Trainer(config, data, recipe, tmp_path)
    trainer.run()

    model = build_model(config, recipe)
    regularizer = model.regularizer
    regularizer.generator = torch.Generator().manual_seed(derive_seed(0, "step", 0))
    rows = Batches(40, 16, 0, 0, 1).indices(0)
    task = F.cross_entropy(model(data.x_train[rows]), data.y_train[rows])
    losses = [x.item() for x in (task + model.regularization, task, model.regularization)]
    row = json.loads((tmp_path / METRICS).read_text())["history"][0]
    assert row["step"] == 1
    assert [row[x] for x in ("total", "task", "regularization")] == pytest.approx(losses)
    assert regularizer.weight == Exponential(9.0, 1.0, 3)


def test_names_make_their_regularisers(run_parts):
    for name in NAMES:
        config, _, _ = run_parts("classification", "node", regularizer=name, regularizer_weight=0.2)
        made = build_regularizer(config)
        parts = repr(made).lower()
        assert all(word in parts for word in name.split("-")) and "0.2" in parts


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"regularizer": "local"}, ValueError, "regularizer must be one of none, local-unbiased"),
        ({"regularizer": "rnode", "regularizer_weight": -1.0}, ValueError, "must be at least 0"),
        ({"regularizer": "rnode", "regularizer_weight": "1"}, TypeError, "must be a float"),
        ({"regularizer_weight": 1.0}, ValueError, "regularizer_weight needs a regularizer"),
        (
            {"regularizer": "rnode", "regularizer_weight_end": 1.0},
            ValueError,
            "needs two positive weights",
        ),
    ],
)
def test_bad_settings_are_named(run_parts, settings, error, words):
    with pytest.raises(error, match=words):
        run_parts("classification", "node", **settings)


def test_simulation_free_training_has_no_solve_to_regularise(run_parts):
    with pytest.raises(ValueError, match="regularizer 'rnode' needs method 'node'"):
        run_parts("classification", "simfree", regularizer="rnode")
