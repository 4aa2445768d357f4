import io
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fastnode import datasets

needs_data = pytest.mark.skipif(
    not os.environ.get("FASTNODE_DATA"), reason="FASTNODE_DATA names no folder with data"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTNODE_DATA", str(tmp_path))
    return tmp_path


def save_table(path: Path, **changes):
    path.parent.mkdir(exist_ok=True)
    x = np.arange(60.0).reshape(20, 3) ** 2
    x[:, 1] = 0.998
    order = np.stack([np.arange(20), np.arange(20)[::-1]]).astype("i4")
    arrays = {"x": x, "y": 3 * np.arange(20.0) + 1}
    arrays |= {"train_idx": order[:, :15], "test_idx": order[:, 15:]} | changes
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return arrays


def save_images(path: Path, shape, dtype="u1"):
    random = np.random.RandomState(0)
    arrays = {f"x_{part}": random.randint(0, 256, (4, *shape)).astype(dtype) for part in PARTS}
    arrays |= {f"y_{part}": np.arange(4, dtype="u1") for part in PARTS}
    np.savez(path, **arrays)
    return arrays


PARTS = ("train", "test")


def test_digits_are_split_by_class_and_always_the_same_way():
    data, again = datasets.load("digits"), datasets.load("digits")
    assert data.x_train.shape == (1437, 64) and data.x_test.shape == (360, 64)
    assert data.x_train.dtype == torch.float32 and data.y_train.dtype == torch.int64
    assert data.x_train.min() == 0 and data.x_train.max() == 1
    share = torch.bincount(data.y_test) / torch.bincount(torch.cat([data.y_train, data.y_test]))
    assert ((share - 0.2).abs() < 0.01).all()
    assert torch.equal(data.x_train, again.x_train) and torch.equal(data.y_test, again.y_test)
    assert len(data.x_valid) == 0 and data.num_classes == 10


def test_diabetes_is_standardised_by_its_training_part():
    data = datasets.load("diabetes")
    assert len(data.x_train) + len(data.x_valid) + len(data.x_test) == 442
    assert data.y_train.shape == (len(data.x_train), 1)
    for part in (data.x_train, data.y_train):
        torch.testing.assert_close(part.mean(0), torch.zeros(part.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(part.std(0, correction=0), torch.ones(part.shape[1]))


def test_uci_trains_on_the_first_60_percent_of_the_train_rows(folder):
    raw = save_table(folder / "uci" / "yacht.npz")
    for split in (0, 1):
        data = datasets.load("uci/yacht", split)
        train, test = raw["train_idx"][split], raw["test_idx"][split]
        for part, rows in (("train", train[:9]), ("valid", train[9:]), ("test", test)):
            y = getattr(data, f"y_{part}").double() * data.y_std + data.y_mean
            torch.testing.assert_close(y[:, 0], torch.from_numpy(raw["y"][rows]), atol=1e-4, rtol=0)
        assert data.y_mean == pytest.approx(raw["y"][train[:9]].mean())
        x = raw["x"][train[:9]][:, 0]
        expected = (raw["x"][test][:, 0] - x.mean()) / x.std()
        np.testing.assert_allclose(data.x_test[:, 0].numpy(), expected, rtol=1e-5)


def test_a_constant_column_is_not_blown_up(folder):
    save_table(folder / "uci" / "naval.npz")
    assert datasets.load("uci/naval").x_train[:, 1].abs().max() < 1e-6


@needs_data
@pytest.mark.parametrize(
    ("name", "rmse"),
    [("boston", 4.588), ("energy", 3.056), ("yacht", 8.970), ("wine", 0.654), ("naval", 0.0059)],
)
def test_linear_regression_on_uci_splits_has_the_published_rmse(name, rmse):
    with np.load(Path(os.environ["FASTNODE_DATA"]) / "uci" / f"{name}.npz") as file:
        splits = len(file["train_idx"])
    found = []
    for split in range(splits):
        data = datasets.load(f"uci/{name}", split)
        x = torch.cat([data.x_train, data.x_valid]).double()
        y = torch.cat([data.y_train, data.y_valid]).double()
        x, x_test = (torch.cat([part, torch.ones(len(part), 1)], 1) for part in (x, data.x_test))
        # Columns of energy depend on each other up to the rounding of float32.
        weights = torch.linalg.lstsq(x, y, rcond=1e-5, driver="gelsd").solution
        error = (x_test.double() @ weights - data.y_test) * data.y_std
        found.append(error.square().mean().sqrt().item())
    assert np.mean(found) == pytest.approx(rmse, rel=0.01)


@needs_data
def test_mnist_and_cifar10_from_files():
    mnist, cifar = datasets.load("mnist"), datasets.load("cifar10")
    assert mnist.x_train.shape == (60000, 784) and mnist.x_test.shape == (10000, 784)
    assert mnist.y_train[:5].tolist() == [5, 0, 4, 1, 9]
    assert (
        cifar.x_train.shape[1:] == (3, 32, 32)
        and torch.bincount(cifar.y_test).unique().numel() == 1
    )
    assert cifar.x_train.is_contiguous() and cifar.x_train.max() == 1


def test_images_keep_their_layout(folder):
    raw = save_images(folder / "cifar10.npz", (32, 32, 3))
    data = datasets.load("cifar10")
    assert data.x_train.shape == (4, 3, 32, 32)
    assert data.x_train[2, 1, 5, 7] == pytest.approx(raw["x_train"][2, 5, 7, 1] / 255)
    assert data.source == str(folder / "cifar10.npz")
    raw = save_images(folder / "mnist.npz", (28, 28))
    pixel = datasets.load("mnist").x_test[3, 28 * 4 + 9]
    assert pixel == pytest.approx(raw["x_test"][3, 4, 9] / 255)


def fake_retrieve(make_file, calls):
    def retrieve(url, known_hash, fname, path):
        calls.append((url, known_hash))
        make_file(Path(path) / fname)
        return str(Path(path) / fname)

    return retrieve


def test_mnist_is_downloaded_with_its_checksum_when_absent(folder, monkeypatch):
    pooch = pytest.importorskip("pooch")
    calls = []
    make = fake_retrieve(lambda path: save_images(path, (28, 28)), calls)
    monkeypatch.setattr(pooch, "retrieve", make)
    assert datasets.load("mnist").x_train.shape == (4, 784)
    datasets.load("mnist")
    assert len(calls) == 1, "the second load must find the file"
    assert calls[0][0].startswith("https://") and calls[0][1].startswith("sha256:")


def test_cifar10_is_read_from_the_binary_archive(folder, monkeypatch):
    pooch = pytest.importorskip("pooch")
    records = np.random.RandomState(0).randint(0, 256, (6, 2, 3073)).astype("u1")

    def make_archive(path):
        names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
        with tarfile.open(path, "w:gz") as archive:
            for name, content in zip(names, records, strict=True):
                member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
                member.size = content.size
                archive.addfile(member, io.BytesIO(content.tobytes()))

    monkeypatch.setattr(pooch, "retrieve", fake_retrieve(make_archive, []))
    data = datasets.load("cifar10")
    assert data.x_train.shape == (10, 3, 32, 32) and data.x_test.shape == (2, 3, 32, 32)
    assert data.y_train.tolist() == records[:5, :, 0].reshape(-1).tolist()
    assert data.x_test[1, 2, 0, 1] == pytest.approx(records[5, 1, 1 + 2 * 1024 + 1] / 255)


@pytest.mark.parametrize("error", [ConnectionError("no route"), ValueError("hash does not match")])
def test_a_failed_download_says_where_to_put_the_file(folder, monkeypatch, error):
    pooch = pytest.importorskip("pooch")

    def retrieve(*args, **kwargs):
        raise error

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with pytest.raises(FileNotFoundError, match=r"put mnist.npz into .*x_train uint8 \(N,28,28\)"):
        datasets.load("mnist")


def test_missing_libraries_are_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r"digits .* pip install fastnode\[examples\]"):
        datasets.load("digits")
    with pytest.raises(FileNotFoundError, match="put cifar10.npz into .*pip install pooch"):
        datasets.load("cifar10")


def test_a_missing_uci_file_is_named_with_its_layout(folder, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"put uci/boston.npz into .*train_idx int"):
        datasets.load("uci/boston")
    monkeypatch.delenv("FASTNODE_DATA")
    with pytest.raises(FileNotFoundError, match="set FASTNODE_DATA to a folder with uci/boston"):
        datasets.load("uci/boston")


def test_unknown_names_and_splits_are_refused(folder):
    save_table(folder / "uci" / "wine.npz")
    for name in ("iris", "uci/iris", "", "../mnist"):
        with pytest.raises(ValueError, match="unknown dataset .*digits, diabetes"):
            datasets.load(name)
    with pytest.raises(ValueError, match="digits has one split only"):
        datasets.load("digits", 1)
    with pytest.raises(ValueError, match="splits 0 to 1, got split 2"):
        datasets.load("uci/wine", 2)
    with pytest.raises(ValueError, match="split must be 0 or more, got -1"):
        datasets.load("uci/wine", -1)


@pytest.mark.parametrize(
    "changes",
    [
        {"y": None},
        {"y": np.ones((20, 2))},
        {"train_idx": np.zeros((2, 5))},
        {"test_idx": np.full((2, 5), 20, "i4")},
        {"x": np.array([[object()]])},
    ],
    ids=["no y", "y 2-d", "float indices", "row out of range", "pickle"],
)
def test_a_table_that_is_not_as_described_is_refused(folder, changes):
    save_table(folder / "uci" / "power.npz", **changes)
    with pytest.raises(ValueError, match="power.npz"):
        datasets.load("uci/power")


def test_damaged_or_wrong_files_are_refused(folder):
    path = folder / "mnist.npz"
    path.write_bytes(b"not a zip file")
    with pytest.raises(ValueError, match="mnist.npz is not an npz file with x_train"):
        datasets.load("mnist")
    save_images(path, (28, 28), dtype="f4")
    with pytest.raises(ValueError, match=r"does not hold x_train uint8 \(N,28,28\)"):
        datasets.load("mnist")
    save_images(path, (28, 28))
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 4 : len(whole) // 4 + 500] = bytes(500)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="mnist.npz is not an npz file"):
        datasets.load("mnist")
