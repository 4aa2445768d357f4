"""``make gpu``'s script, with a stand-in for the Python that has a GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.results_file import read

ROOT = Path(__file__).parents[2]
STAND_IN = f"""#!/bin/sh
case "$*" in
  *gpu_summary*) exec {sys.executable} "$@" ;;
  *bench_gpu_flow*) echo broken; exit 3 ;;
  *get_device_capability*) echo 9.0 ;;
  *"-m gpu tests") exec sleep 60 ;;
esac
"""

pytestmark = pytest.mark.skipif(shutil.which("timeout") is None, reason="no timeout command")


@pytest.fixture(autouse=True)
def leave_no_link():
    """The script reads the Triton kernels through a link in the tree."""
    link = ROOT / "fastnode" / "triton_kernels"
    was_there = link.is_symlink()
    yield
    if not was_there:
        link.unlink(missing_ok=True)


def run(folder, budget):
    python = folder / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    settings = {"PYTHON": str(python), "OUT": str(folder / "out"), "BUDGET": str(budget)}
    result = subprocess.run(
        ["bash", "bench/gpu.sh"],
        cwd=ROOT,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
    )
    steps = read(folder / "out" / "steps.jsonl").rows
    return result, {each["step"]: each["status"] for each in steps}


@pytest.mark.slow
def test_a_step_that_hangs_or_fails_does_not_lose_the_others(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "odeint.json").write_text("")
    result, steps = run(tmp_path, 7)
    assert result.returncode == 1
    assert steps["build"] == steps["info"] == "passed"
    assert steps["tests"] == "out of time"
    assert steps["odeint"] == steps["flow"] == steps["memcheck"] == "skipped"
    assert "odeint: not finished" in result.stdout
    lines = (tmp_path / "out" / "summary.txt").read_text().splitlines()
    assert lines[-1].startswith("tiles") and result.stdout.endswith(lines[-1] + "\n")


def test_gpu_script_names_files_that_exist():
    text = (ROOT / "bench/gpu.sh").read_text()
    paths = re.findall(r"\b(?:tests|bench)/[\w/]+\.py\b", text)
    assert len(paths) > 4 and all((ROOT / path).is_file() for path in paths)


def test_folder_must_be_named():
    environment = {name: value for name, value in os.environ.items() if name != "OUT"}
    result = subprocess.run(
        ["bash", "bench/gpu.sh"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode != 0 and "OUT must name a folder" in result.stderr
