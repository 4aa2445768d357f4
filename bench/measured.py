"""Committed results, and how numbers of README and docs are written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

SOURCES: dict[str, Callable[[Results], str]] = {}


def source(make: Callable[[Results], str]) -> Callable[[Results], str]:
    SOURCES[make.__name__] = make
    return make


class Results:
    """The JSON files of one device."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.read = cache(self._read)

    def _read(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / f"{name}.json").read_text())

    def facts(self, name: str, subject: str, case: str) -> dict[str, Any]:
        """What a benchmark kept; KeyError if the file has no such benchmark."""
        for each in self.read(name)["benchmarks"]:
            found = each["extra_info"]
            if (found.get("subject"), found.get("case")) == (subject, case):
                return found
        raise KeyError(f"{name}.json has no benchmark {subject!r}, {case!r}")

    def cases(self, name: str, subject: str) -> list[str]:
        rows = [each["extra_info"] for each in self.read(name)["benchmarks"]]
        return [row["case"] for row in rows if row.get("subject") == subject]

    def ratio(self, name: str, subject: str, case: str, reference: str) -> float:
        """How many times longer the reference takes."""
        return self.facts(name, subject, case)["ratios"][reference]

    def device(self, name: str) -> str:
        machine = self.read(name)["machine_info"]
        threads = machine["torch_threads"]
        return (
            f"{machine['cpu']['brand_raw']}, {machine['fastnode_build']['instruction set']}, "
            f"{threads} thread{'s' if threads > 1 else ''}, torch {machine['torch']}"
        )


def number(x: float) -> str:
    """Three digits, two below 1."""
    if x >= 1000:
        return f"{x:,.0f}"
    return f"{x:#.3g}".rstrip(".") if x >= 1 else f"{x:.2g}"


def tiny(x: float) -> str:
    return "0" if x == 0 else f"{x:.0e}"


def power(x: float) -> str:
    """A tolerance: 1e-6, 1.4e-8."""
    mantissa, exponent = f"{x:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
