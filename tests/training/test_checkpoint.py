import errno
import os
import pickle
import random

import pytest
import torch

from fastnode.training import checkpoint


def state(**changes):
    entries = {
        "config": {"dataset": "digits"},
        "step": 3,
        "finished": False,
        "model": {"weight": torch.arange(6.0).reshape(2, 3)},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]},
        "best": {"value": 0.5, "step": 2, "model": {}},
        "history": [{"step": 3, "seconds": 0.25, "total": 0.25}],
        "interval": {"steps": 1, "seconds": 0.5, "nfe": 20},
        "losses": {"total": torch.tensor(0.5)},
    }
    return entries | changes


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, state())
    loaded = checkpoint.load(path)
    assert torch.equal(loaded.pop("model")["weight"], state()["model"]["weight"])
    assert loaded["history"] == state()["history"] and loaded["step"] == 3
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch, call):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, state())
    before = path.read_bytes()

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.os, call, full)
    with pytest.raises(OSError, match=r"cannot write .*checkpoint.pt: No space left") as error:
        checkpoint.save(path, state(step=4))
    assert error.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == ["checkpoint.pt"] and path.read_bytes() == before


def test_the_remains_of_a_killed_write_do_no_harm(tmp_path):
    path = tmp_path / "checkpoint.pt"
    (tmp_path / ".checkpoint.pt.part").write_bytes(b"half")
    checkpoint.save(path, state())
    assert checkpoint.load(path)["step"] == 3
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(value)])
def test_a_hostile_checkpoint_runs_no_code(tmp_path, write):
    path, proof = tmp_path / "checkpoint.pt", tmp_path / "executed"
    content = {"format": checkpoint.FORMAT, **state(config=Hostile(proof))}
    write(content if write is torch.save else pickle.dumps(content), path)
    with pytest.raises(ValueError, match=r"checkpoint.pt is damaged or not a checkpoint"):
        checkpoint.load(path)
    assert not proof.exists()


def test_damaged_checkpoints_are_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, state())
    whole = path.read_bytes()
    for size in range(0, len(whole) - 1, len(whole) // 40):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"checkpoint.pt is"):
            checkpoint.load(path)


def test_flipped_bytes_give_a_checkpoint_or_one_kind_of_error(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, state())
    whole = path.read_bytes()
    source = random.Random(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(source.choice([1, 1, 4, 32])):
            damaged[source.randrange(len(whole))] = source.randrange(256)
        path.write_bytes(damaged)
        try:
            checkpoint.load(path)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 0


@pytest.mark.parametrize("content", [[1], {"step": 3}, state(format="other")])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "checkpoint.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match="is not a fastnode training checkpoint, version 1"):
        checkpoint.load(path)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.pt"):
        checkpoint.load(tmp_path / "nothing.pt")
