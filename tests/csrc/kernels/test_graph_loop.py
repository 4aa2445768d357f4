"""How a loop on the device is put together, with the CUDA runtime's graph functions replaced."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from selection import slow

HERE = Path(__file__).parents[1] / "fake_graphs"
CSRC = Path(__file__).parents[3] / "csrc"
COMPILER = shutil.which(os.environ.get("CXX", "c++").split()[0])


def output(version: int, folder: Path) -> list[str]:
    program = folder / "loop"
    command = [COMPILER, "-std=c++17", "-Wall", "-Werror", "-I", str(HERE), "-I", str(CSRC)]
    command += [f"-DFAKE_CUDART_VERSION={version}", "-x", "c++", "-o", str(program)]
    command += [str(HERE / "main.cpp"), str(CSRC / "kernels" / "cuda_graph" / "graph_loop_cuda.cu")]
    subprocess.run(command, check=True, capture_output=True, text=True)
    result = subprocess.run([program], capture_output=True, text=True, check=True, timeout=30)
    return result.stdout.splitlines()


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize("version", [slow(12040), slow(12080), 13000])
def test_graph_loop_runs_its_body_while_the_flag_is_set(version, tmp_path):
    available, made, log, alive, with_old_driver = output(version, tmp_path)
    assert available == "1" and made == "0 1 1"
    assert log == " fbbb fb fb |bb |b"
    # The body runs once at least: a step after the end changes nothing.
    # Nothing of the runtime's is left behind.
    assert alive == "0"
    assert with_old_driver == "0"


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_a_runtime_without_conditional_nodes_says_so(tmp_path):
    available, made = output(12030, tmp_path)
    assert available == "0"
    assert made == "801 0 0"
