"""Memory that a call needs, as the kernel counts it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fastnode


def peak_megabytes(call: Callable[[], Any]) -> float:
    """The largest resident set during ``call`` above that before it, in a process that has not
    needed as much before.

    Not by getrusage: its peak is handed on from the process that started this one.
    """
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def in_own_process(script: str, *arguments: object) -> float:
    """What ``python script arguments`` prints, run on one thread."""
    paths = [str(Path(__file__).parent), str(Path(fastnode.__file__).parent.parent)]
    path = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def in_own_processes(script: str, runs: Sequence[Sequence[object]]) -> list[float]:
    """``in_own_process`` for each of several arguments, two at a time: they do not see each
    other."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda arguments: in_own_process(script, *arguments), runs))


def _status(name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024
