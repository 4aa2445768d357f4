"""Real data sets as tensors, with fixed splits and the preprocessing of simulation-free training.

`digits` and `diabetes` come with scikit-learn, `spiral` is computed. The others are npz files in
the folder that the environment variable FASTNODE_DATA names; `mnist` and `cifar10` are downloaded
into it (or into the user's cache folder) when they are not there. A user's own csv or npz file is a
data set too. No file is unpickled.
"""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import torch

from fastnode.datasets import physionet, spiral
from fastnode.datasets.columns import read_npz
from fastnode.datasets.dataset import Dataset
from fastnode.datasets.own_file import TASKS, load_own, statistics
from fastnode.datasets.table import SUFFIXES, Table

__all__ = ["NAMES", "TASKS", "UCI", "Dataset", "Table", "load"]

UCI = ("boston", "concrete", "energy", "kin8nm", "naval", "power", "protein", "wine", "yacht")
ALONE = ("digits", "diabetes", "mnist", "cifar10", "physionet", "spiral")
NAMES = (*ALONE, *(f"uci/{name}" for name in UCI))

_IMAGES = "x_train uint8 (N,{shape}), y_train (N,), x_test, y_test"
_TABLE = "x float64 (N,D), y float64 (N,), train_idx int (S,n_train), test_idx int (S,n_test)"
_MNIST_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
_MNIST_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
_CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_CIFAR10_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"


def load(
    name: str,
    split: int = 0,
    target: str | None = None,
    task: str | None = None,
    seed: int = 0,
) -> Dataset:
    """Loads the data set `name`, one of `NAMES` or a file of your own.

    A csv file is UTF-8 text whose first line names the columns, separated by commas, semicolons or
    tabs; all but the target are inputs and hold numbers. An npz file has the arrays x [N, D] and
    y [N]. Five sevenths of the rows are trained on, one is for validation and one for the test, of
    each class alike; inputs, and the target of a regression, are standardised by the rows trained
    on.

    Args:
        name: `digits`, `diabetes`, `mnist`, `cifar10`, `physionet`, `spiral` or `uci/<set>`; or the
            path of a file whose name ends in `.csv` or `.npz`.
        split: which of a UCI set's train/test splits; the other sets have only split 0.
        target: of a csv file, the column that is predicted.
        task: of a file of your own, `classification` or `regression`. If None, texts and truth
            values are classes, and so are whole numbers if there are at most 20 different ones
            and at least ten times as many rows.
        seed: of the split of a file of your own.

    Raises:
        ValueError: unknown name, split, target or task, or a file that does not hold what it
            should: names the line and the column.
        FileNotFoundError: the file is absent and could not be downloaded; says where to put it.
        ImportError: scikit-learn (for `digits`, `diabetes`) is not installed.
    """
    if split < 0:
        raise ValueError(f"split must be 0 or more, got {split}")
    own = Path(name).suffix.lower() in SUFFIXES
    if not own and name not in NAMES:
        raise ValueError(
            f"unknown dataset {name!r}; expected one of: {', '.join(NAMES)}; or a .csv or .npz file"
        )
    if split != 0 and (own or not name.startswith("uci/")):
        raise ValueError(f"{name} has one split only, 0; got split {split}")
    if own:
        return load_own(name, target, task, seed)
    for label, value in (("target", target), ("task", task)):
        if value is not None:
            raise ValueError(f"{label} is for a .csv or .npz file, got {value!r} for {name}")
    if name.startswith("uci/"):
        return _uci(name, split)
    loaders = (_digits, _diabetes, _mnist, _cifar10, _physionet, _spiral)
    return loaders[ALONE.index(name)]()


def _sklearn_datasets(name: str):
    try:
        from sklearn import datasets, model_selection
    except ImportError as error:
        raise ImportError(
            f"the dataset {name} comes with scikit-learn, which is not installed; "
            "install it: pip install fastnode[examples]"
        ) from error
    return datasets, model_selection


def _digits() -> Dataset:
    datasets, model_selection = _sklearn_datasets("digits")
    x, y = datasets.load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = model_selection.train_test_split(
        x / 16.0, y, test_size=0.2, random_state=0, stratify=y
    )
    return _classification("digits", x_train, y_train, x_test, y_test, "scikit-learn")


def _diabetes() -> Dataset:
    datasets, _ = _sklearn_datasets("diabetes")
    x, y = datasets.load_diabetes(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))
    cut = round(0.9 * len(y))
    return _regression("diabetes", x, y, order[:cut], order[cut:], "scikit-learn")


def _uci(name: str, split: int) -> Dataset:
    path = _find(f"{name}.npz")
    if path is None:
        raise FileNotFoundError(_where_to_put(name, f"{name}.npz", _TABLE))
    arrays = read_npz(path, "x", "y", "train_idx", "test_idx")
    x, y, train, test = (arrays[key] for key in ("x", "y", "train_idx", "test_idx"))
    shapes_fit = x.ndim == 2 and y.shape == x.shape[:1] and train.ndim == test.ndim == 2
    if not (shapes_fit and len(train) == len(test) and train.dtype.kind == test.dtype.kind == "i"):
        raise ValueError(f"{path} does not hold {_TABLE}")
    if split >= len(train):
        raise ValueError(f"{name} has splits 0 to {len(train) - 1}, got split {split}")
    rows = np.concatenate([train[split], test[split]])
    if rows.min() < 0 or rows.max() >= len(y):
        raise ValueError(f"{path}: split {split} names rows outside 0 to {len(y) - 1}")
    return _regression(name, x, y, train[split], test[split], str(path))


def _mnist() -> Dataset:
    path = _find("mnist.npz")
    if path is None:
        layout = _IMAGES.format(shape="28,28")
        path = _download("mnist", "mnist.npz", layout, _MNIST_URL, _MNIST_SHA256)
    x_train, y_train, x_test, y_test = _read_images(path, (28, 28))
    x_train, x_test = (x.reshape(len(x), -1) / np.float32(255) for x in (x_train, x_test))
    return _classification("mnist", x_train, y_train, x_test, y_test, str(path))


def _cifar10() -> Dataset:
    path = _find("cifar10.npz") or _find("cifar10_10k2k.npz")
    if path is None:
        layout = _IMAGES.format(shape="32,32,3")
        path = _download("cifar10", "cifar10.npz", layout, _CIFAR10_URL, _CIFAR10_SHA256)
    if path.suffix == ".npz":
        x_train, y_train, x_test, y_test = _read_images(path, (32, 32, 3))
        x_train, x_test = (x.transpose(0, 3, 1, 2) for x in (x_train, x_test))
    else:
        x_train, y_train = _read_cifar(path, [f"data_batch_{i}.bin" for i in range(1, 6)])
        x_test, y_test = _read_cifar(path, ["test_batch.bin"])
    x_train, x_test = (x / np.float32(255) for x in (x_train, x_test))
    return _classification("cifar10", x_train, y_train, x_test, y_test, str(path))


def _physionet() -> Dataset:
    parts = []
    for file in physionet.FILES:
        path = _find(file)
        if path is None:
            raise FileNotFoundError(_where_to_put("physionet", file, physionet.LAYOUT))
        try:
            parts.append(physionet.series(read_npz(path, *physionet.FIELDS)))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    value, seen = (np.concatenate(each) for each in zip(*parts, strict=True))
    train, test = map(torch.from_numpy, physionet.split(value, seen))
    return _interpolation("physionet", train, train, test, test, str(path.parent))


def _spiral() -> Dataset:
    values = spiral.trajectories(1200)
    y = torch.stack([values, torch.ones_like(values)], dim=2)
    x = values[:, 0]
    return _interpolation("spiral", x[:1000], y[:1000], x[1000:], y[1000:], "computed")


def _interpolation(name, x_train, y_train, x_test, y_test, source: str) -> Dataset:
    parts = (x_train, y_train, x_train[:0], y_train[:0], x_test, y_test)
    return Dataset(name, "interpolation", *parts, source=source)


def _folder() -> Path | None:
    named = os.environ.get("FASTNODE_DATA")
    return Path(named) if named else None


def _find(file: str) -> Path | None:
    folder = _folder()
    return folder / file if folder is not None and (folder / file).is_file() else None


def _where_to_put(name: str, file: str, layout: str) -> str:
    folder = _folder()
    place = f"put {file} into {folder}" if folder else f"set FASTNODE_DATA to a folder with {file}"
    return f"dataset {name} not found: {place}; numpy npz without pickles: {layout}"


def _download(name: str, file: str, layout: str, url: str, sha256: str) -> Path:
    hint = _where_to_put(name, file, layout)
    try:
        import pooch
    except ImportError as error:
        raise FileNotFoundError(f"{hint} (or, to download: pip install pooch)") from error
    folder = _folder() or Path(pooch.os_cache("fastnode"))
    try:
        return Path(pooch.retrieve(url, f"sha256:{sha256}", fname=url.split("/")[-1], path=folder))
    except (OSError, ValueError) as error:
        # requests' errors are OSErrors; a wrong checksum is a ValueError.
        raise FileNotFoundError(f"{hint} (download of {url} failed: {error})") from error


def _read_images(path: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    arrays = tuple(read_npz(path, "x_train", "y_train", "x_test", "y_test").values())
    for x, y in (arrays[:2], arrays[2:]):
        if x.dtype != np.uint8 or x.shape[1:] != shape or y.shape != x.shape[:1]:
            expected = _IMAGES.format(shape=",".join(map(str, shape)))
            raise ValueError(f"{path} does not hold {expected}")
    return arrays


def _read_cifar(path: Path, members: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Records of one byte of label and 3 x 32 x 32 bytes of pixels, planes in RGB order.

    The archive's checksum was verified by the download.
    """
    with tarfile.open(path) as archive:
        files = [archive.extractfile(f"cifar-10-batches-bin/{name}") for name in members]
        raw = b"".join(file.read() for file in files if file is not None)
    records = np.frombuffer(raw, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


def _classification(name, x_train, y_train, x_test, y_test, source: str) -> Dataset:
    x_train, x_test = (torch.from_numpy(np.ascontiguousarray(x, "f4")) for x in (x_train, x_test))
    y_train, y_test = (torch.from_numpy(y.astype("i8")) for y in (y_train, y_test))
    parts = (x_train, y_train, x_train[:0], y_train[:0], x_test, y_test)
    return Dataset(name, "classification", *parts, source=source, num_classes=10)


def _regression(name, x, y, train, test, source: str) -> Dataset:
    """The first 60 % of the train rows are trained on, the rest of them are for early stopping.

    Mean and standard deviation come from the rows trained on alone.
    """
    cut = int(0.6 * len(train))
    fit, valid = train[:cut], train[cut:]
    y = y[:, None]
    x_mean, x_std = statistics(x[fit])
    y_mean, y_std = statistics(y[fit])
    x = torch.from_numpy(((x - x_mean) / x_std).astype("f4"))
    z = torch.from_numpy(((y - y_mean) / y_std).astype("f4"))
    return Dataset(
        name=name,
        task="regression",
        x_train=x[fit],
        y_train=z[fit],
        x_valid=x[valid],
        y_valid=z[valid],
        x_test=x[test],
        y_test=z[test],
        source=source,
        y_mean=float(y_mean[0]),
        y_std=float(y_std[0]),
    )
