"""What the demo measures, for the tables of the docs: python -m bench.demo"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.machine import head
from bench.results_file import write

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

PARTS = ("digits", "regression")


def rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each part and method, and one for the NODE by torchdiffeq."""
    rates = found["samples_per_second"]
    kept = []
    for part in PARTS:
        for row in found[part]:
            metric = row["metric"]
            solvers = row["solvers"].items()
            kept.append(
                {
                    "part": part,
                    "method": row["method"],
                    "steps": row["steps"],
                    "seconds": row["seconds"],
                    "nfe_per_step": row["nfe"],
                    metric: {name: solver[metric] for name, solver in solvers},
                    "nfe": {name: solver["nfe"] for name, solver in solvers},
                }
            )
            if part == "digits":
                kept[-1]["samples_per_second"] = rates[row["method"]]
    rival = {"part": "digits", "method": "torchdiffeq"}
    return [*kept, rival | {"samples_per_second": rates["torchdiffeq"]}]


def main() -> None:
    from demo import run

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench/results/cpu/demo.jsonl"))
    parser.add_argument("--quick", action="store_true", help="a few steps only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder) / "demo", options.quick)
    facts = {"threads": found["threads"], "regression_std": found["regression_std"]}
    write(options.out, {**head(), **facts}, rows(found))


if __name__ == "__main__":
    main()
