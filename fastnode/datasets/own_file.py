"""A user's own file as a data set: the task found, columns encoded, rows split by a seed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from fastnode.datasets.columns import MISSING, Columns, as_number, read_columns
from fastnode.datasets.dataset import Dataset
from fastnode.datasets.table import Table

TASKS = ("classification", "regression")
LEAST_ROWS = 10
#: Whole numbers are taken for classes if there are no more of them, with ten rows for each.
MOST_CLASSES, ROWS_PER_CLASS = 20, 10
#: Row i of this many goes to the validation part, and to the test part.
PARTS, VALID, TEST = 7, 6, 3


def load_own(name: str, target: str | None, task: str | None, seed: int) -> Dataset:
    """The data set of a csv or npz file; see `fastnode.datasets.load`."""
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    path = Path(name).resolve()
    columns = read_columns(path)
    target = _find_target(columns, target)
    features = [each for each in columns.cells if each != target]
    if not features:
        raise ValueError(f"{path} has no column besides the target {target!r}")
    if len(columns) < LEAST_ROWS:
        raise ValueError(f"{path} has {len(columns)} rows; at least {LEAST_ROWS} are needed")
    x = columns.numbers(features)
    y, classes = _encode_target(columns, target, task)
    train, valid, test = _split(y, bool(classes), seed)
    x_mean, x_std = statistics(x[train])
    y_mean, y_std = (0.0, 1.0) if classes else map(float, statistics(y[train]))
    table = Table(
        features=features,
        x_mean=x_mean.tolist(),
        x_std=x_std.tolist(),
        target=target,
        classes=classes,
        y_mean=y_mean,
        y_std=y_std,
        digest=hashlib.blake2b(x.tobytes() + y.tobytes(), digest_size=16).hexdigest(),
    )
    inputs, targets = table.standardise(path, x), torch.from_numpy(y)
    if not classes:
        targets = ((targets - y_mean) / y_std).float()[:, None]
        if not (targets.isfinite().all() and np.isfinite(y_std)):
            raise ValueError(f"{path}: the numbers of column {target!r} are too large")
    return Dataset(
        name="table",
        task="classification" if classes else "regression",
        x_train=inputs[train],
        y_train=targets[train],
        x_valid=inputs[valid],
        y_valid=targets[valid],
        x_test=inputs[test],
        y_test=targets[test],
        source=str(path),
        num_classes=len(classes) or None,
        y_mean=y_mean,
        y_std=y_std,
        table=table,
    )


def statistics(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation along the first dimension; 1 for what is constant."""
    # Rounding can leave a constant column a std of 1e-16, so constancy is decided by its range.
    constant = np.ptp(columns, axis=0) == 0
    with np.errstate(over="ignore", invalid="ignore"):
        return columns.mean(axis=0), np.where(constant, 1.0, columns.std(axis=0))


def _find_target(columns: Columns, target: str | None) -> str:
    if columns.lines is None:
        if target not in (None, "y"):
            raise ValueError(f"the target of {columns.path} is its array y, got {target!r}")
        return "y"
    if target not in columns.cells:
        raise ValueError(
            f"target must name a column of {columns.path}, one of: {columns.named()}; "
            f"got {target!r}"
        )
    return target


def _encode_target(columns: Columns, name: str, task: str | None) -> tuple[np.ndarray, list[str]]:
    """float64 [N] and no classes, or class numbers int64 [N] and the names of the classes."""
    if task not in (None, *TASKS):
        raise ValueError(f"task must be {' or '.join(TASKS)}, got {task!r}")
    cells = columns.cells[name]
    for row, cell in enumerate(cells):
        if str(cell).lower() in MISSING:
            raise ValueError(columns.place(row, name))
    values = np.array([as_number(cell) for cell in cells])
    is_text = bool(np.isnan(values).any())
    if task == "regression" or not is_text:
        values = columns.numbers([name])[:, 0]
    if task == "regression" or not (is_text or task or _are_classes(values)):
        if np.ptp(values) == 0:
            raise ValueError(f"{columns.path}: column {name!r} has one value only, {values[0]:g}")
        return values, []
    if is_text:
        labels = cells.astype(str)
        found, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
        classes = [str(each) for each in found]
    else:
        found, numbers, counts = np.unique(values, return_inverse=True, return_counts=True)
        classes = [str(int(each) if each.is_integer() else each) for each in found.tolist()]
    place = f"{columns.path}: column {name!r} has"
    if len(classes) == 1:
        raise ValueError(f"{place} one value only, {classes[0]!r}")
    if counts.min() < 2:
        rare = classes[int(counts.argmin())]
        raise ValueError(
            f"{place} {len(classes)} classes, of which {rare!r} has one row; each needs two or more"
        )
    return numbers.astype("i8"), classes


def _are_classes(values: np.ndarray) -> bool:
    count = len(np.unique(values))
    few = count <= min(MOST_CLASSES, len(values) // ROWS_PER_CLASS)
    return few and bool((values == np.floor(values)).all())


def _split(y: np.ndarray, classes: bool, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of training (five sevenths), validation and test, each class shared out alike."""
    # This generator's numbers stay the same in all versions of numpy, and take any seed.
    order = np.random.RandomState(np.random.MT19937(seed)).permutation(len(y))
    if classes:
        order = order[np.argsort(y[order], kind="stable")]
    place = np.arange(len(y)) % PARTS
    # Two neighbours are never both left out of training: a class of two rows is trained on.
    return tuple(
        np.sort(order[each])
        for each in ((place != VALID) & (place != TEST), place == VALID, place == TEST)
    )  # pyright: ignore[reportReturnType]
