"""Keeps what ``make bench`` measured: python -m bench.keep [RUN] [FOLDER]

RUN is pytest-benchmark's JSON of one run of several benchmark files, out/bench.json by default. For
each of them FOLDER, bench/results/cpu by default, gets a file: bench_odeint.py's is odeint.jsonl.
"""

from __future__ import annotations

import argparse
from itertools import groupby
from pathlib import Path

from bench.results_file import Row, Run, read, write

ROOT = Path(__file__).parents[1]


def keep(run: Run, folder: Path) -> dict[Path, int]:
    """Writes the run's rows by the file that they come from; returns how many each file got.

    Raises:
        ValueError: it is no run of benchmark files.
    """

    def stem(row: Row) -> str:
        file = Path(row["name"].partition("::")[0]).stem
        if not file.startswith("bench_"):
            raise ValueError(f"benchmarks must be of files bench_*.py, got {row['name']}")
        return file.removeprefix("bench_")

    if not run.rows:
        raise ValueError("a run must hold benchmarks, got none")
    # Ordered by file, and within a file as they ran.
    parts = {name: list(rows) for name, rows in groupby(sorted(run.rows, key=stem), stem)}
    for name, rows in parts.items():
        write(folder / f"{name}.jsonl", run.head, rows)
    return {folder / f"{name}.jsonl": len(rows) for name, rows in parts.items()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?", default=ROOT / "out/bench.json")
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "bench/results/cpu")
    chosen = parser.parse_args(arguments)
    for path, count in keep(read(chosen.run), chosen.folder).items():
        print(f"{path}: {count} benchmarks")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
