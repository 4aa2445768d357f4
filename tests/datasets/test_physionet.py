"""PhysioNet 2012: from files of observations to series on a grid."""

import os

import numpy as np
import pytest
import torch

from fastnode import datasets
from fastnode.datasets import physionet

NAMES = np.array(["RecordID", *(f"v{i}" for i in range(physionet.VARIABLES))])


def observations(rows, patients):
    """rows: (patient, minute, param, value), sorted by patient."""
    patient, minute, param, value = (np.array(column) for column in zip(*rows, strict=True))
    return {
        "offset": np.searchsorted(patient, np.arange(patients + 1)),
        "minute": minute.astype("i2"),
        "param": param.astype("u1"),
        "value": value.astype("f4"),
        "param_names": NAMES,
    }


ROWS = [
    (0, 0, 0, 132539.0),
    (0, 0, 1, 54.0),
    (0, 0, 2, -1.0),
    (0, 89, 5, 1.0),
    (0, 91, 5, 3.0),
    (0, 95, 5, 5.0),
    (0, 2880, 6, 0.0),
    (1, 0, 1, 60.0),
]


def test_physionet_averages_observations_by_the_hour():
    value, seen = physionet.series(observations(ROWS, 2))
    assert value.shape == seen.shape == (1, 49, 41), (
        "a patient with descriptors alone has no series"
    )
    assert seen.sum() == 4
    assert seen[0, 0, 0] == 1 and value[0, 0, 0] == 54
    assert seen[0, 0, 1] == 0, "-1 is a missing descriptor"
    assert value[0, 1, 4] == 1.0 and value[0, 2, 4] == 4.0
    assert seen[0, 48, 5] == 1 and value[0, 48, 5] == 0


def test_ranges_come_from_the_patients_that_are_trained_on():
    random = np.random.RandomState(0)
    seen = (random.rand(50, 49, 41) < 0.3).astype("f4")
    value = (random.randn(50, 49, 41) * 5 + 2).astype("f4") * seen
    seen[:, :, 7] = 0
    train, test = physionet.split(value, seen)
    assert train.shape == (40, 49, 2, 41) and test.shape == (10, 49, 2, 41)
    observed = train[:, :, 1, 3] > 0
    found = train[:, :, 0, 3][observed]
    assert found.min() == 0 and found.max() == pytest.approx(1)
    assert (test[:, :, 0][test[:, :, 1] == 0] == 0).all() and np.isfinite(train).all()


@pytest.mark.parametrize("change", [{"offset": np.array([0, 9])}, {"param_names": NAMES[:5]}])
def test_other_arrays_are_named(change):
    with pytest.raises(ValueError, match="does not hold offset int"):
        physionet.series(observations(ROWS, 2) | change)


def test_absent_and_damaged_files_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTNODE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"put physionet2012/set_a\.npz into .*offset int"):
        datasets.load("physionet")
    (tmp_path / "physionet2012").mkdir()
    for part in "ab":
        np.savez(tmp_path / f"physionet2012/set_{part}.npz", **observations(ROWS, 2))
    data = datasets.load("physionet")
    assert len(data.x_train) + len(data.x_test) == 2 and data.task == "interpolation"
    (tmp_path / "physionet2012/set_b.npz").write_text("")
    with pytest.raises(ValueError, match="set_b.npz is not an npz file"):
        datasets.load("physionet")


@pytest.mark.skipif(not os.environ.get("FASTNODE_DATA"), reason="FASTNODE_DATA names no folder")
def test_the_real_set():
    data = datasets.load("physionet")
    assert len(data.x_train) + len(data.x_test) == 7990
    assert data.x_train.shape[1:] == (49, 2, 41) and data.x_train.dtype == torch.float32
    values, seen = data.x_train.unbind(2)
    assert values.max() == 1 and ((seen == 0) | (seen == 1)).all()


def test_spirals_solve_their_equation():
    data = datasets.load("spiral")
    values, seen = data.y_train.unbind(2)
    assert values.shape == (1000, 25, 2) and (seen == 1).all()
    assert torch.equal(values[:, 0], data.x_train)
    matrix = torch.tensor([[-0.1, -2.0], [2.0, -0.1]], dtype=torch.float64)
    y = values.double()
    middle = (y[:, 2:] - y[:, :-2]) * 12
    slope = y[:, 1:-1] ** 3 @ matrix
    assert ((middle - slope).norm(dim=2) / slope.norm(dim=2)).median() < 0.02
