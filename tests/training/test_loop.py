import copy
import errno
import json
import math
import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_run import same

from fastnode import SolverError
from fastnode.training import CHECKPOINT, METRICS, Trainer, build_model, checkpoint, folder_lock
from fastnode.training.batches import Batches, derive_seed

RUNS = [
    (task, method) for task in ("classification", "regression") for method in ("simfree", "node")
]


def stop_at(trainer, step):
    return lambda: trainer.step >= step


@pytest.mark.parametrize(("task", "method"), RUNS)
def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path, run_parts, task, method):
    parts = run_parts(task, method)
    whole = Trainer(*parts, tmp_path / "whole")
    results = whole.run()
    broken = tmp_path / "broken"
    trainer = Trainer(*parts, broken, checkpoint_every=5)
    for step in (4, 5, 11):
        assert trainer.run(stop=stop_at(trainer, step)) is None
        assert trainer.step == step and not trainer.finished
        trainer = Trainer(*parts, broken, checkpoint_every=2, resume=True)
        assert trainer.step == step
    assert same(trainer.run(), results)
    states = [checkpoint.load(folder / CHECKPOINT) for folder in (tmp_path / "whole", broken)]
    assert same(*states)
    again = Trainer(*parts, broken, resume=True)
    assert again.finished and same(again.run(), results)


def test_a_run_continues_from_its_last_checkpoint_after_a_kill(tmp_path, run_parts):
    parts = run_parts("regression", "simfree")
    Trainer(*parts, tmp_path / "whole").run()
    killed = Trainer(*parts, tmp_path / "killed", checkpoint_every=5)

    def kill(progress):
        if progress.step == 9:
            raise MemoryError

    with pytest.raises(MemoryError):
        killed.run(kill)
    resumed = Trainer(*parts, tmp_path / "killed", resume=True)
    assert resumed.step == 5
    resumed.run()
    states = [checkpoint.load(tmp_path / name / CHECKPOINT) for name in ("whole", "killed")]
    assert same(*states)


@pytest.mark.parametrize("method", ["simfree", "node"])
def test_training_is_what_its_description_says(tmp_path, run_parts, changed, method):
    config, data, recipe = run_parts("classification", method, steps=4, eval_every=100)
    recipe = changed(recipe, clip_simfree=0.3, clip_node=0.2)
    state = torch.random.get_rng_state()
    trainer = Trainer(config, data, recipe, tmp_path)
    trainer.run()
    assert torch.equal(torch.random.get_rng_state(), state)

    model = build_model(config, recipe)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0, fused=True)
    batches = Batches(40, 16, config.seed, 0, 1)
    for step in range(4):
        rows = batches.indices(step)
        x, y = data.x_train[rows], data.y_train[rows]
        if method == "simfree":
            seed = derive_seed(config.seed, "step", step, 0)
            loss = model.loss(x, y, torch.Generator().manual_seed(seed)).total
        else:
            loss = F.cross_entropy(model(x, "dopri5", rtol=1e-3, atol=1e-3), y)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3 if method == "simfree" else 0.2)
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 + math.cos(math.pi * step / 4)) / 2
        optimizer.step()
    for found, expected in zip(trainer.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_seeds_and_paths_change_the_result(tmp_path, run_parts):
    ends = []
    for settings in ({}, {"seed": 1}, {"path": "concave"}):
        trainer = Trainer(*run_parts("regression", "simfree", **settings), tmp_path / str(settings))
        trainer.run()
        ends.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    assert not torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_metrics_tell_of_loss_speed_and_evaluations(tmp_path, run_parts):
    for method, nfe in (("simfree", 1), ("node", 8)):
        trainer = Trainer(*run_parts("regression", method, steps=250), tmp_path / method)
        reports = []
        results = trainer.run(reports.append)
        metrics = json.loads((tmp_path / method / METRICS).read_text())
        assert metrics["results"] == results and metrics["finished"]
        assert metrics["config"]["method"] == method and metrics["step"] == 250
        history = metrics["history"]
        assert [row["step"] for row in history] == [*range(2, 251, 2)]
        assert [report.step for report in reports] == [row["step"] for row in history]
        assert history[-1]["total"] < history[0]["total"]
        assert metrics["nfe_per_step"] == nfe if nfe == 1 else metrics["nfe_per_step"] >= nfe
        assert metrics["samples_per_second"] > 0
        if method == "simfree":
            for row in history:
                assert row["total"] == pytest.approx(row["flow"] + row["label"], rel=1e-4)


def test_trainer_stops_by_patience_with_the_best(tmp_path, run_parts, changed):
    config, data, recipe = run_parts("regression", "simfree", steps=400, eval_every=2)
    # Validation targets that nothing predicts better and better.
    data = changed(data, y_valid=-10 * data.y_train[:10], x_valid=data.x_train[:10])
    trainer = Trainer(config, data, changed(recipe, patience=4), tmp_path)
    trainer.run()
    best = trainer.best
    assert trainer.finished and trainer.step == best["step"] + 2 * 4 < 400
    assert same(dict(trainer.model.state_dict()), best["model"])
    last = checkpoint.load(tmp_path / CHECKPOINT)["model"]
    assert not same(last, best["model"])
    metrics = json.loads((tmp_path / METRICS).read_text())
    assert metrics["validation"] == {"step": best["step"], "value": best["value"]}


def test_without_patience_nothing_is_validated(tmp_path, run_parts):
    trainer = Trainer(*run_parts("classification", "simfree"), tmp_path)
    trainer.run()
    assert trainer.best["model"] == {}
    assert json.loads((tmp_path / METRICS).read_text())["validation"] is None


def test_trainer_keeps_the_checkpoint_at_a_nonfinite_loss(tmp_path, run_parts):
    parts = run_parts("classification", "simfree", steps=40)
    trainer = Trainer(*parts, tmp_path, checkpoint_every=3)

    def spoil():
        if trainer.step == 7:
            next(trainer.model.parameters()).data.fill_(math.nan)
        return False

    with pytest.raises(
        FloatingPointError, match="loss became nan in step 8, .*lower learning rate"
    ):
        trainer.run(stop=spoil)
    state = checkpoint.load(tmp_path / CHECKPOINT)
    assert state["step"] == 6
    assert all(value.isfinite().all() for value in state["model"].values())


def test_a_folder_with_a_run_is_not_overwritten(tmp_path, run_parts):
    parts = run_parts("classification", "simfree")
    Trainer(*parts, tmp_path).run()
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(ValueError, match="holds a run already"):
        Trainer(*parts, tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_resuming_with_other_settings_names_them(tmp_path, run_parts):
    Trainer(*run_parts("classification", "simfree"), tmp_path).run()
    other = run_parts("classification", "simfree", seed=3, steps=13)
    with pytest.raises(ValueError, match="other settings: steps 13 instead of 12, seed 3 inst"):
        Trainer(*other, tmp_path, resume=True)


def longer(parts, **settings):
    """The same run with other settings."""
    config, data, recipe = parts
    return replace(config, **settings), data, recipe


@pytest.mark.parametrize(("task", "method"), RUNS[::3])
def test_a_finished_run_goes_on_with_more_steps(tmp_path, run_parts, changed, task, method):
    config, data, recipe = run_parts(task, method)
    parts = config, data, changed(recipe, schedule="none")
    whole = Trainer(*longer(parts, steps=19), tmp_path / "whole")
    results = whole.run()
    Trainer(*parts, tmp_path / "more").run()
    more = Trainer(*longer(parts, steps=19), tmp_path / "more", resume=True, checkpoint_every=4)
    assert more.step == 12 and not more.finished
    # Stopped on its way, it still knows where it was going.
    assert more.run(stop=stop_at(more, 14)) is None
    again = Trainer(*longer(parts, steps=19), tmp_path / "more", resume=True)
    assert again.step == 14
    assert same(again.run(), results)
    states = [checkpoint.load(tmp_path / name / CHECKPOINT) for name in ("whole", "more")]
    assert same(*states)
    with pytest.raises(ValueError, match="other settings: steps 12 instead of 19"):
        Trainer(*parts, tmp_path / "more", resume=True)


def test_more_steps_follow_their_own_schedule(tmp_path, run_parts):
    parts = run_parts("classification", "simfree")
    Trainer(*parts, tmp_path).run()
    more = Trainer(*longer(parts, steps=24), tmp_path, resume=True)
    more.run(stop=stop_at(more, 13))
    rate = more.optimizer.param_groups[0]["lr"]
    assert rate == pytest.approx(1e-2 * (1 + math.cos(math.pi * 12 / 24)) / 2)


def test_a_run_that_was_out_of_patience_stays_finished(tmp_path, run_parts, changed):
    config, data, recipe = run_parts("regression", "simfree", steps=400, eval_every=2)
    data = changed(data, y_valid=-10 * data.y_train[:10], x_valid=data.x_train[:10])
    parts = config, data, changed(recipe, patience=4)
    run = Trainer(*parts, tmp_path)
    results = run.run()
    again = Trainer(*longer(parts, steps=800), tmp_path, resume=True)
    assert again.finished and again.step == run.step < 400
    assert same(again.run(), results)


def test_two_runs_in_one_new_folder_are_refused(tmp_path, run_parts):
    parts = run_parts("classification", "simfree")
    first = Trainer(*parts, tmp_path)
    for resume in (False, True):
        with pytest.raises(ValueError, match="is in use by another run; choose another folder"):
            Trainer(*parts, tmp_path, resume=resume)
    tried = []

    def try_another():
        if not tried:
            with pytest.raises(ValueError, match="in use") as caught:
                Trainer(*parts, tmp_path)
            tried.append(caught)
        return first.step >= 5

    assert first.run(stop=try_another) is None and tried
    # Whoever is done, or has failed, leaves the folder to others.
    with pytest.raises(ValueError, match="holds a run already"):
        Trainer(*parts, tmp_path)
    assert Trainer(*parts, tmp_path, resume=True).run() is not None


@pytest.mark.parametrize("lack", ["locks", "fcntl"])
def test_a_folder_that_cannot_be_locked_is_used(tmp_path, run_parts, monkeypatch, lack):
    if lack == "fcntl":
        monkeypatch.setattr(folder_lock, "fcntl", None)
    else:

        def flock(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(folder_lock.fcntl, "flock", flock)
    assert Trainer(*run_parts("classification", "simfree", steps=2), tmp_path).run() is not None


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ("model", "does not fit the model"),
        ("best", "does not fit the model"),
        ("int8", "does not fit the model: decoder.bias is torch.int8, expected torch.float32"),
        ("complex64", "does not fit the model: decoder.bias is torch.complex64, expected"),
        ("optimizer", "optimiser state that does not fit"),
        ("moments", "optimiser state that does not fit"),
        ("config", "holds no valid settings: config has missing or unknown entries: nets"),
        ("step", "is at step 13 of 12"),
        ("losses", "is not a valid checkpoint: KeyError: 'losses'"),
        ("history", "is not a valid checkpoint: KeyError: 'seconds'"),
        ("interval", "is not a valid checkpoint: TypeError: "),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, run_parts, entry, match):
    parts = run_parts("regression", "simfree")
    Trainer(*parts, tmp_path).run()
    state = checkpoint.load(tmp_path / CHECKPOINT)
    state.pop("format")
    if entry == "optimizer":
        state["optimizer"]["state"][99] = state["optimizer"]["state"][0]
    elif entry == "moments":
        state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(1)
    elif entry in ("int8", "complex64"):
        model = state["model"]
        model["decoder.bias"] = model["decoder.bias"].to(getattr(torch, entry))
    elif entry == "config":
        state["config"]["nets"] = "large"
    elif entry == "step":
        state["step"] = 13
    elif entry == "losses":
        del state["losses"]
    elif entry == "history":
        state["history"] = [{"step": 3}]
    elif entry == "interval":
        state["interval"] = 3
    else:
        model = state["model"] if entry == "model" else state["best"]["model"]
        model["decoder.bias"] = torch.zeros(7)
    checkpoint.save(tmp_path / CHECKPOINT, state)
    with pytest.raises(ValueError, match=match):
        Trainer(*parts, tmp_path, resume=True)


def test_a_run_stopped_before_its_first_step_resumes(tmp_path, run_parts):
    parts = run_parts("regression", "simfree")
    run = Trainer(*parts, tmp_path)
    assert run.run(stop=lambda: True) is None and run.step == 0
    assert Trainer(*parts, tmp_path, resume=True).run() is not None


def test_a_folder_that_cannot_be_made_is_named(tmp_path, run_parts):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(OSError, match=f"cannot make the folder {out}"):
            Trainer(*run_parts("classification", "simfree"), out)


def test_checkpoint_interval_must_be_positive(tmp_path, run_parts):
    with pytest.raises(ValueError, match="checkpoint_every must be 1 or more, got 0"):
        Trainer(*run_parts("classification", "simfree"), tmp_path, checkpoint_every=0)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"method": "anode"}, ValueError, "unknown method 'anode'; expected simfree or node"),
        ({"path": "zigzag"}, ValueError, "zigzag.*concave, convex, linear"),
        ({"path": 3}, TypeError, "path must be a str, got 3"),
        ({"steps": 0}, ValueError, "steps must be 1 or more, got 0"),
        ({"batch": 2.0}, TypeError, "batch must be an int, got 2.0"),
        ({"seed": -1}, ValueError, "seed must be 0 or more, got -1"),
        ({"lr": math.nan}, ValueError, "lr must be positive and finite, got nan"),
        ({"lr": "fast"}, TypeError, "lr must be a float, got 'fast'"),
        ({"processes": 3}, ValueError, "batch must be a multiple of the 3 processes, got 16"),
    ],
)
def test_wrong_settings_are_named(run_parts, settings, error, match):
    with pytest.raises(error, match=match):
        run_parts("classification", **{"method": "simfree", **settings})


def places(value, place=()):
    """The keys that lead to each entry, of many alike the first."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, entry in list(items)[: 3 if place else None]:
        yield (*place, key)
        if isinstance(entry, (dict, list)):
            yield from places(entry, (*place, key))


ODD = (None, -1, 10**400, math.nan, "x", b"", [], {"a": 1}, torch.zeros(3), torch.tensor(2))
ODD += (torch.empty(2, device="meta"), torch.ones(2).to_sparse(), torch.float32)


@pytest.mark.slow
def test_any_checkpoint_content_is_used_or_refused(tmp_path, run_parts):
    parts = run_parts("regression", "simfree", steps=220)
    begun = Trainer(*parts, tmp_path)
    begun.run(stop=stop_at(begun, 7))
    whole = checkpoint.load(tmp_path / CHECKPOINT)
    whole.pop("format")
    refused, tried, draw = 0, 0, random.Random(0)
    for *way, last in places(whole):
        for odd in draw.sample(ODD, 3):
            state = copy.deepcopy(whole)
            inner = state
            for key in way:
                inner = inner[key]
            inner[last] = odd
            checkpoint.save(tmp_path / CHECKPOINT, state)
            tried += 1
            try:
                trainer = Trainer(*parts, tmp_path, resume=True)
                trainer.run(stop=stop_at(trainer, 8))
            except (ValueError, FloatingPointError, SolverError):
                refused += 1
    assert refused > 0.75 * tried > 100
