"""A run survives what happens to processes and disks: nothing is lost, and one line says why."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
FAULTS = {
    "no-larger-files": "checkpoint.pt: File too large",
    "folder-in-the-way": "checkpoint.pt: Is a directory",
    "full-disk": "metrics.json: No space left on device",
    "read-only": "metrics.json: Read-only file system",
}


def report_of(program, *arguments):
    """What a program of tests/support prints as JSON; with nothing computed yet, it may fork."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(TESTS / "support" / program), *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    return report_of("killed_runs.py", tmp_path_factory.mktemp("killed"), 20)


def test_killed_runs_resume_to_the_same_result(killed):
    steps, equal = zip(*killed["runs"], strict=True)
    assert equal == (True,) * 20
    # The moments were all over the run, before its first checkpoint and at its end too.
    assert min(steps) == 0 and max(steps) == 12 and len(set(steps)) >= 5


def test_write_atomically_leaves_the_old_or_the_new_file(killed):
    held = killed["writes"]
    assert len(held) > 20 and set(held) == {"old", "new"}
    assert held == sorted(held, reverse=True)


@pytest.fixture(scope="module")
def suffered(tmp_path_factory):
    pytest.importorskip("sklearn")
    return report_of("faulty_runs.py", tmp_path_factory.mktemp("faulty"))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_disk_gives_one_line_and_loses_nothing(suffered, fault):
    report = suffered[fault]
    if "skipped" in report:
        pytest.skip(f"no mounts of its own for a process here: {report['skipped']}")
    for code, lines in report["heard"]:
        assert code == 2
        assert lines[-1].startswith("fastnode: error: ") and lines[-1].endswith(FAULTS[fault])
        assert sum("error" in line for line in lines) == 1
        assert not any("Traceback" in line for line in lines)
    assert report["left"] == ["checkpoint.pt", "metrics.json"] and report["step"] == 2
    assert report["resumed"] == 0 and report["finished"] and report["equal"], report["words"]


def test_resuming_in_a_read_only_folder_fails_at_once(suffered):
    if "skipped" in suffered["read-only"]:
        pytest.skip("no mounts of its own for a process here")
    _, (_, lines) = suffered["read-only"]["heard"]
    assert len(lines) == 1
