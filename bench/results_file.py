"""What the benchmarks leave behind, read again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Row:
    """One benchmark of a run."""

    subject: str
    case: str
    #: How many times longer each reference takes.
    ratios: dict[str, float]
    microseconds: float
    #: Distance of the quartiles of our own times over their median.
    spread: float
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """One JSON file of pytest-benchmark."""

    name: str
    machine: dict[str, Any]
    rows: list[Row]

    @property
    def device(self) -> str:
        return str(self.machine.get("gpu") or self.machine.get("cpu", {}).get("brand_raw", "?"))

    @property
    def versions(self) -> str:
        parts = (f"{name} {self.machine.get(name, '?')}" for name in ("fastnode", "torch"))
        return f"{', '.join(parts)}, {self.machine.get('torch_threads', '?')} threads"


def read_run(path: Path) -> Run:
    """Raises ValueError if the file is no result of these benchmarks."""
    try:
        content = json.loads(path.read_text())
        rows = [_row(each) for each in content["benchmarks"] if "ratios" in each["extra_info"]]
        return Run(path.stem, content["machine_info"], rows)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be the JSON of a run of these benchmarks") from error


def read_runs(folder: Path) -> Iterator[Run]:
    """The runs among the JSON files of a folder; others, such as tables, are passed over."""
    for path in sorted(folder.glob("*.json")):
        if "benchmarks" in json.loads(path.read_text()):
            yield read_run(path)


def _row(benchmark: dict[str, Any]) -> Row:
    facts = dict(benchmark["extra_info"])
    stats = benchmark["stats"]
    median = stats["median"]
    return Row(
        facts.pop("subject"),
        facts.pop("case"),
        facts.pop("ratios"),
        facts.pop("microseconds"),
        stats["iqr"] / median if median else 0.0,
        facts,
    )
