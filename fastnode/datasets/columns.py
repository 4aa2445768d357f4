"""The columns of csv and npz files, with errors that name the file, the line and the column."""

from __future__ import annotations

import csv
import io
import math
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

#: What stands for a missing value, in lower case.
MISSING = {"", "na", "n/a", "nan", "null", "?"}
_DELIMITERS = ",;\t"
_SHOWN = 12


def read_npz(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Some arrays of an npz file; nothing is unpickled.

    Raises:
        ValueError: it is not an npz file with these arrays.
    """
    fields = ", ".join(names)
    try:
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("not a zip archive")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is not an npz file with {fields}: {error}") from error


@dataclass(frozen=True)
class Columns:
    """Named columns of N cells each: texts of a csv file, numbers or texts of an npz file.

    ``lines`` are the lines of a csv file on which the rows end; rows of an npz file are counted
    from 0.
    """

    path: Path
    cells: dict[str, np.ndarray]
    lines: list[int] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.cells.values())))

    def numbers(self, names: list[str]) -> np.ndarray:
        """Some of the columns as float64 [N, len(names)].

        Raises:
            ValueError: names the first cell that holds no finite number.
        """
        values = np.empty((len(self), len(names)))
        for index, name in enumerate(names):
            cells = self.cells[name]
            try:
                values[:, index] = cells
            except ValueError:
                values[:, index] = [as_number(cell) for cell in cells]
        wrong = np.argwhere(~np.isfinite(values))
        if len(wrong):
            row, index = wrong[0]
            others = f" ({len(wrong)} such cells in all)" if len(wrong) > 1 else ""
            raise ValueError(f"{self.place(row, names[index])}{others}")
        return values

    def place(self, row: int, name: str) -> str:
        """What is wrong with a cell that holds no finite number, and where it stands."""
        cell = str(self.cells[name][row]).strip()
        if cell.lower() in MISSING:
            what = "a value is missing; fill it in or leave the row out"
        elif math.isnan(as_number(cell)):
            what = f"{_short(cell)} is no number; encode it as one or leave the column out"
        else:
            what = f"{_short(cell)} is not finite"
        where = f"line {self.lines[row]}" if self.lines else f"row {row}"
        return f"{self.path}, {where}, column {name!r}: {what}"

    def named(self) -> str:
        """The columns' names for a message, the first of them if there are many."""
        names = list(self.cells)
        more = f", ... ({len(names)} in all)" if len(names) > _SHOWN else ""
        return ", ".join(names[:_SHOWN]) + more


def read_columns(path: Path, with_target: bool = True) -> Columns:
    """Reads a csv file whose first line names the columns, or an npz file with x [N, D] and y.

    A csv file is UTF-8 text; its columns are separated by commas, semicolons or tabs. The columns
    of an npz file are called x0, x1, ... and y; y, [N] or [N, 1], is only read ``with_target``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not of this form, or has no rows.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    columns = _read_csv(path) if path.suffix.lower() == ".csv" else _read_arrays(path, with_target)
    if not len(columns):
        raise ValueError(f"{path} has no rows")
    return columns


def as_number(cell: object) -> float:
    """The number that a cell holds, NaN if it holds none."""
    try:
        return float(cell)  # pyright: ignore[reportArgumentType]
    except ValueError:
        return math.nan


def _read_csv(path: Path) -> Columns:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            text = file.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error.reason}") from error
    # The header has no decimal commas.
    header_line = text.lstrip().partition("\n")[0]
    delimiter = max(_DELIMITERS, key=header_line.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows, lines = [], []
    try:
        for row in reader:
            if "".join(row).strip() or len(row) > 1:
                rows.append([cell.strip() for cell in row])
                lines.append(reader.line_num)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
    if not rows:
        raise ValueError(f"{path} is empty; its first line must name the columns")
    names = rows.pop(0)
    lines.pop(0)
    _check_names(path, names)
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(names):
            counts = f"{len(row)} cells for {len(names)} columns"
            raise ValueError(f"{path}, line {line}: {counts}")
    cells = np.array(rows, dtype=object).reshape(len(rows), len(names))
    return Columns(path, {name: cells[:, i] for i, name in enumerate(names)}, lines)


def _check_names(path: Path, names: list[str]) -> None:
    if not any(math.isnan(as_number(name)) for name in names):
        raise ValueError(f"{path}: the first line must name the columns, got numbers alone")
    if "" in names:
        raise ValueError(f"{path}: column {names.index('') + 1} has no name in the first line")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{path}: {count} columns are called {name!r}")


def _read_arrays(path: Path, with_target: bool) -> Columns:
    arrays = read_npz(path, "x", *["y"] * with_target)
    x = arrays["x"]
    if x.ndim != 2 or x.shape[1] == 0 or x.dtype.kind not in "iufb":
        raise ValueError(f"{path}: x must be numbers [N, D], got {x.dtype} {list(x.shape)}")
    cells = {f"x{index}": x[:, index] for index in range(x.shape[1])}
    if with_target:
        y = arrays["y"]
        if y.shape not in (x.shape[:1], (len(x), 1)) or y.dtype.kind not in "iufbUS":
            raise ValueError(
                f"{path}: y must be numbers or texts [{len(x)}], got {y.dtype} {list(y.shape)}"
            )
        # Truth values are names of classes, not numbers.
        y = y.reshape(len(x))
        cells["y"] = y if y.dtype.kind in "iuf" else y.astype(str).astype(object)
    return Columns(path, cells)


def _short(cell: str) -> str:
    return repr(cell if len(cell) <= 30 else cell[:27] + "...")
