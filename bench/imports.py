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

from bench.machine import head
from bench.results_file import write

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
    parser.add_argument("--out", type=Path, default=Path("bench/results/cpu/imports.jsonl"))
    out = parser.parse_args().out
    seconds()
    times = zip(*(seconds() for _ in range(11)), strict=True)
    rows = [
        {"module": module, "milliseconds": 1e3 * median(each)}
        for module, each in zip(("torch", "fastnode"), times, strict=True)
    ]
    write(out, head(), rows)
    print(rows)


if __name__ == "__main__":
    main()
