"""Memory that a call needs, as the kernel counts it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any


def peak_megabytes(call: Callable[[], Any]) -> float:
    """The largest resident set during ``call`` above that before it, in a process that has not
    needed as much before.

    Not by getrusage: its peak is handed on from the process that started this one.
    """
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024
