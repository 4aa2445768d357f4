"""The machine's peak of fused multiply-adds, measured by a program that does nothing else."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path


@cache
def measure(threads: int) -> float | None:
    """Operations of float32 a second by so many threads at once; None without a compiler."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        return None
    source = Path(__file__).with_suffix(".cpp")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "fma_peak.so"
        command = [compiler, "-O3", "-march=native", "-std=c++20", "-shared", "-fPIC", str(source)]
        subprocess.run([*command, "-o", str(library)], check=True)
        run = ctypes.CDLL(str(library)).fma_peak
    run.restype, run.argtypes = ctypes.c_double, [ctypes.c_double]
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(run, [0.3] * threads))
