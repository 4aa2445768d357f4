"""Keeps what ``make bench`` measured: python -m bench.keep [RUN] [FOLDER]

RUN is the JSON of one run of several benchmark files, out/bench.json by default. For each of them
FOLDER, bench/results/cpu by default, gets a JSON of its own: bench_odeint.py's is odeint.json.
"""

from __future__ import annotations

import argparse
import json
from itertools import groupby
from pathlib import Path
from typing import Any

from fastnode.training.checkpoint import write_atomically

ROOT = Path(__file__).parents[1]


def parts(run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The run's results by the subject of their file.

    Raises:
        ValueError: it is no run of benchmark files.
    """

    def subject(benchmark: dict[str, Any]) -> str:
        file = Path(benchmark["fullname"].partition("::")[0]).stem
        if not file.startswith("bench_"):
            raise ValueError(f"benchmarks must be of files bench_*.py, got {benchmark['fullname']}")
        return file.removeprefix("bench_")

    if not run.get("benchmarks"):
        raise ValueError("a run must hold benchmarks, got none")
    # Ordered by file, and within a file as they ran.
    ordered = sorted(run["benchmarks"], key=subject)
    return {name: {**run, "benchmarks": list(rows)} for name, rows in groupby(ordered, subject)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?", default=ROOT / "out/bench.json")
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "bench/results/cpu")
    chosen = parser.parse_args(arguments)
    for name, part in parts(json.loads(chosen.run.read_text())).items():
        path = chosen.folder / f"{name}.json"
        write_atomically(path, json.dumps(part, indent=4).encode())
        print(f"{path}: {len(part['benchmarks'])} benchmarks")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
