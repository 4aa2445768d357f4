"""Every example runs to its end with --quick, as a user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from selection import slow_but

ROOT = Path(__file__).parents[1]
NEEDS = {"with_accelerate.py": ["accelerate"]}
SCRIPTS = sorted(
    path.name for path in (ROOT / "examples").glob("*.py") if "--quick" in path.read_text()
)


@pytest.mark.parametrize("script", slow_but(SCRIPTS, "classifier.py"))
def test_example_runs_with_quick(script, tmp_path):
    for package in ("sklearn", *NEEDS.get(script, ())):
        pytest.importorskip(package)
    bundled = {"anode_cifar.py": "digits", "simfree_regression.py": "diabetes"}
    data = ["--data", bundled[script]] if script in bundled else []
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / script), "--quick", *data],
        cwd=tmp_path,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
