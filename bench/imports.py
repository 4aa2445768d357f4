"""What importing fastnode costs beyond importing torch: python -m bench.imports

Processor time in processes of their own, with bytecode written. Garbage collection is off: whether
a pass over all of torch's objects falls into an import is chance, with any import.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import torch

from bench.machine import processor
from fastnode.training.checkpoint import write_json

ROOT = Path(__file__).parents[1]
PROGRAM = """
import gc, json, time
started = time.process_time()
import torch
between = time.process_time()
gc.disable()
import fastnode
print(json.dumps([between - started, time.process_time() - between]))
"""


def seconds() -> tuple[float, float]:
    """Of importing torch, and of importing fastnode after it."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = json.loads(done.stdout)
    return first, second


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("bench/results/cpu/imports.json"))
    out = parser.parse_args().out
    seconds()
    rows = [seconds() for _ in range(11)]
    found = {
        "device": processor(),
        "torch": torch.__version__,
        "milliseconds": {
            "torch": 1e3 * median(row[0] for row in rows),
            "fastnode": 1e3 * median(row[1] for row in rows),
        },
    }
    write_json(out, found)
    print(found)


if __name__ == "__main__":
    main()
