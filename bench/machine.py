"""The machine that a benchmark ran on."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def head() -> dict[str, Any]:
    """The first line of a file of results."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"device": processor(), **versions}
