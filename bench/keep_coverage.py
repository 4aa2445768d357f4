"""Keeps which share of the lines the tests ran: python -m bench.keep_coverage FOLDER [--out FILE]

FOLDER, out/coverage of `make coverage`, holds python.json of coverage and cpp.json of gcovr. Python
that only calls CUDA is counted apart.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bench.machine import head
from bench.results_file import Row, write

ROOT = Path(__file__).parents[1]
NEEDS_GPU = "fastnode/engines/cuda_graph/runtime.py"

#: By file, the lines that ran and all that can run.
Lines = dict[str, tuple[int, int]]


def python_lines(text: str) -> Lines:
    files = {name: each["summary"] for name, each in json.loads(text)["files"].items()}
    return {name: (each["covered_lines"], each["num_statements"]) for name, each in files.items()}


def cpp_lines(text: str) -> Lines:
    files = json.loads(text)["files"]
    return {each["filename"]: (each["line_covered"], each["line_total"]) for each in files}


def percent(ran: int, total: int) -> float:
    """Rounded down, so that 100 is all of them."""
    return 1000 * ran // total / 10 if total else 100.0


def summary(part: str, lines: Lines) -> Row:
    """The share in all, and of each file whose lines did not all run."""
    ran, total = (sum(column) for column in zip(*lines.values(), strict=True))
    files = {name: percent(*lines[name]) for name in sorted(lines)}
    return {
        "part": part,
        "percent": percent(ran, total),
        "lines": total,
        "files": {name: share for name, share in files.items() if share < 100},
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/cpu/coverage.jsonl")
    options = parser.parse_args(arguments)
    python = python_lines((options.folder / "python.json").read_text())
    of_gpu = {NEEDS_GPU: python.pop(NEEDS_GPU)}
    cpp = cpp_lines((options.folder / "cpp.json").read_text())
    parts = {"python": python, "cpp": cpp, "needs_gpu": of_gpu}
    rows = [summary(name, lines) for name, lines in parts.items()]
    write(options.out, head(), rows)
    print({row["part"]: row["percent"] for row in rows})


if __name__ == "__main__":
    main()
