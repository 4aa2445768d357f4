"""Runs the tests of values on the CPU, under Triton's interpreter.

In a process of their own: the interpreter is chosen when a kernel is decorated, and it would take
the place of the compiler that other tests here need.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from selection import slow

pytest.importorskip("triton")

HERE = Path(__file__).parent


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter is on here already"
)
@pytest.mark.parametrize("chosen", ["not slow", slow("slow")])
def test_kernels_agree_with_plain_torch_under_the_interpreter(tmp_path, chosen):
    files = ["test_interpolant.py", "test_flow_loss.py", "test_tiling.py", "test_trajectories.py"]
    files.append("test_linear_flow_loss.py")
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", chosen]
    command += [f"--confcutdir={HERE}", *(str(HERE / name) for name in files)]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert " passed" in run.stdout and "skipped" not in run.stdout


@pytest.mark.slow
def test_importing_fastnode_imports_no_triton():
    code = (
        "import sys, torch; before = 'triton' in sys.modules; import fastnode; "
        "assert ('triton' in sys.modules) == before; "
        "assert not any(m.startswith('fastnode.triton_kernels.') for m in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
