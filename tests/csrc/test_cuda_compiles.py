"""Every CUDA source compiles for the architectures we ship, on machines without a GPU too."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
HOME = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
NVCC = shutil.which("nvcc") or shutil.which(f"{HOME}/bin/nvcc")


@pytest.mark.skipif(NVCC is None, reason="nvcc not found")
@pytest.mark.parametrize("source", sorted(CSRC.glob("**/*.cu")), ids=lambda p: p.stem)
def test_compiles_for_sm80_and_sm90_without_a_warning_or_a_spill(source, tmp_path):
    command = [NVCC, "-c", str(source), "-o", str(tmp_path / "out.o"), "-O3", "-std=c++17"]
    command += ["-I", str(CSRC), "-Werror", "all-warnings", "-Xcompiler", "-fPIC,-Wall,-Werror"]
    command += ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=sm_90"]
    command += ["-Xptxas", "-v", "--threads", "2"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    spills = [line for line in result.stderr.splitlines() if "bytes spill stores" in line]
    assert spills and all("0 bytes spill stores, 0 bytes spill loads" in line for line in spills)
