"""PhysioNet 2012: vital signs of intensive-care patients, observed at irregular times.

Hours and values are made as in Rubanova, Chen, Duvenaud, NeurIPS 2019, arXiv 1907.03907, with the
hourly times of Kelly et al., NeurIPS 2020, arXiv 2007.04504.
"""

from __future__ import annotations

import numpy as np

#: Times 0 to 48 hours after admission.
HOURS = 49
VARIABLES = 41
FILES = ("physionet2012/set_a.npz", "physionet2012/set_b.npz")
LAYOUT = (
    "offset int (P+1,), the rows of patient i being offset[i]:offset[i+1]; minute int (M,), 0 to "
    "2880; param int (M,), index into param_names; value float (M,); param_names"
)
FIELDS = ("offset", "minute", "param", "value", "param_names")
_RECORD = "RecordID"


def series(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Values and whether they were observed, each float32 [P, 49, 41].

    Times are rounded to the hour, and what falls into one hour is averaged. Patients without any
    observation are left out. A descriptor of -1 stands for a missing one.

    Raises:
        ValueError: the arrays are not those of `LAYOUT`.
    """
    offset, minute, param = arrays["offset"], arrays["minute"], arrays["param"]
    value, names = arrays["value"], [str(name) for name in arrays["param_names"]]
    rows = len(value)
    columns = [index for index, name in enumerate(names) if name != _RECORD]
    if not (
        offset.ndim == 1
        and len(minute) == len(param) == rows
        and offset[0] == 0
        and offset[-1] == rows
        and (np.diff(offset) >= 0).all()
        and len(columns) == VARIABLES
        and (not rows or (param.max() < len(names) and 0 <= minute.min() <= minute.max() <= 2880))
    ):
        raise ValueError(f"does not hold {LAYOUT}")
    patients = len(offset) - 1
    place = np.full(len(names), -1)
    place[columns] = np.arange(VARIABLES)
    patient = np.repeat(np.arange(patients), np.diff(offset))
    column = place[param]
    keep = (column >= 0) & (value != -1)
    hour = (minute.astype("i8") + 30) // 60
    cell = ((patient * HOURS + hour) * VARIABLES + column)[keep]
    size = patients * HOURS * VARIABLES
    count = np.bincount(cell, minlength=size)
    total = np.bincount(cell, weights=value[keep].astype("f8"), minlength=size)
    shape = (patients, HOURS, VARIABLES)
    mean = (total / np.maximum(count, 1)).astype("f4").reshape(shape)
    seen = (count > 0).astype("f4").reshape(shape)
    # A patient's descriptors alone, all at hour 0, are no series.
    has_series = seen.any(axis=2).sum(axis=1) > 1
    return mean[has_series], seen[has_series]


def split(value: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """80 % of the patients and the rest, [P, 49, 2, 41]: scaled values, and what was observed.

    Each variable's range over the first part becomes 0 to 1; what was not observed is 0.
    """
    order = np.random.RandomState(0).permutation(len(value))
    cut = round(0.8 * len(value))
    train, test = np.sort(order[:cut]), np.sort(order[cut:])
    mask = seen[train] > 0
    low = np.where(mask, value[train], np.inf).min(axis=(0, 1))
    high = np.where(mask, value[train], -np.inf).max(axis=(0, 1))
    known = np.isfinite(low) & (high > low)
    low, span = np.where(known, low, 0.0), np.where(known, high - low, 1.0)
    scaled = ((value - low) / span * seen).astype("f4")
    both = np.stack([scaled, seen], axis=2)
    return both[train], both[test]
