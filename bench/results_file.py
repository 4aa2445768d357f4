"""The one format of results, and the only code that reads or writes it.

A file is JSON, one object a line (``.jsonl``): first the head, which names the machine and the
versions, then a row for each thing measured. A benchmark's row holds its ``name``, what it noted
(``subject``, ``case``, ``ratios``, ...), the number of ``rounds`` and the ``quartiles`` of what its
rounds took, in seconds. pytest-benchmark's own file of a run (``.json``) is read as the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fastnode.training.checkpoint import write_atomically

Row = dict[str, Any]


@dataclass
class Run:
    """What one file holds."""

    name: str
    head: dict[str, Any]
    rows: list[Row]

    @property
    def benchmarks(self) -> list[Row]:
        return [row for row in self.rows if "ratios" in row]

    @property
    def machine(self) -> str:
        """The device with what it ran, in words."""
        head = self.head
        parts = [head.get("gpu") or head.get("device", "?")]
        if "fastnode_build" in head:
            parts.append(head["fastnode_build"]["instruction set"])
        if "threads" in head:
            parts.append(f"{head['threads']} thread{'s' if head['threads'] > 1 else ''}")
        return ", ".join([*parts, f"torch {head.get('torch', '?')}"])


def write(path: Path, head: dict[str, Any], rows: Iterable[Row]) -> None:
    """Replaces the file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(each) + "\n" for each in (head, *rows))
    write_atomically(path, lines.encode())


def read(path: Path) -> Run:
    """Raises ValueError if the file is neither of ours nor a finished run of our benchmarks."""
    try:
        if path.suffix == ".json":
            return Run(path.stem, *_from_pytest(json.loads(path.read_text())))
        head, *rows = map(json.loads, path.read_text().splitlines())
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be a file of results") from error
    return Run(path.stem, head, rows)


def read_benchmarks(folder: Path) -> Iterator[Run]:
    """The files of a folder that hold benchmarks; others, such as coverage, are passed over."""
    for run in map(read, sorted(folder.glob("*.jsonl"))):
        if run.benchmarks:
            yield run


def spread(row: Row) -> float:
    """Distance of the quartiles over the median, of our own times."""
    low, median, high = row["quartiles"]
    return (high - low) / median if median else 0.0


def _from_pytest(content: dict[str, Any]) -> tuple[dict[str, Any], list[Row]]:
    machine = content["machine_info"]
    cpu = machine.get("cpu", {})
    head = {"device": cpu.get("brand_raw", "?"), "cores": cpu.get("count")}
    names = {"torch_threads": "threads"}
    names |= {name: name for name in ("gpu", "python", "torch", "fastnode", "fastnode_build")}
    head |= {name: machine[key] for key, name in names.items() if key in machine}
    rows = []
    for each in content["benchmarks"]:
        stats = each["stats"]
        quartiles = [stats[name] for name in ("q1", "median", "q3")]
        times = {"quartiles": quartiles, "rounds": stats["rounds"]}
        rows.append({"name": each["fullname"], **each["extra_info"], **times})
    return {**head, "date": content.get("datetime")}, rows


class Results:
    """The files of one device."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.read = cache(self._read)

    def _read(self, name: str) -> Run:
        return read(self.folder / f"{name}.jsonl")

    def row(self, name: str, subject: str, case: str) -> Row:
        """What a benchmark noted; KeyError if the file has no such benchmark."""
        for row in self.read(name).rows:
            if (row.get("subject"), row.get("case")) == (subject, case):
                return row
        raise KeyError(f"{name}.jsonl has no benchmark {subject!r}, {case!r}")

    def cases(self, name: str, subject: str) -> list[str]:
        return [row["case"] for row in self.read(name).rows if row.get("subject") == subject]

    def ratio(self, name: str, subject: str, case: str, reference: str) -> float:
        """How many times longer the reference takes."""
        return self.row(name, subject, case)["ratios"][reference]
