"""How lines that ran are counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("coverage")

from bench import covered  # noqa: E402

ROOT = Path(__file__).parents[2]
LINES = {"a.py": {1: True, 2: False, 4: True}, "b.py": {1: True}, "gpu.py": {1: False}}


def test_shares_are_rounded_down_and_whole_files_left_out():
    assert covered.summary(LINES) == {
        "percent": 60.0,
        "lines": 5,
        "files": {"a.py": 66.6, "gpu.py": 0.0},
    }
    assert covered.percent(9999, 10000) == 99.9 and covered.percent(0, 0) == 100
    assert covered.missed(LINES) == "a.py: 2\ngpu.py: 1\n"


def test_files_that_need_a_gpu_are_counted_apart():
    rest, apart = covered.split(LINES, ["gpu*"])
    assert list(rest) == ["a.py", "b.py"] and list(apart) == ["gpu.py"]


def test_a_header_line_counts_if_any_includer_ran_it(tmp_path):
    def report(file, *lines):
        return {
            "files": [
                {"file": file, "lines": [{"line_number": n, "count": count} for n, count in lines]}
            ]
        }

    found = covered.defaultdict(dict)
    covered.add_report(found, tmp_path, report("csrc/a.h", (1, 0), (2, 5)))
    covered.add_report(found, tmp_path, report(str(tmp_path / "csrc/a.h"), (1, 3), (3, 0)))
    covered.add_report(found, tmp_path, report("/usr/include/vector", (1, 3)))
    assert dict(found) == {"csrc/a.h": {1: True, 2: True, 3: False}}


def test_the_committed_shares_are_what_is_asked_for():
    shares = json.loads((ROOT / "bench/results/cpu/coverage.json").read_text())
    assert shares["python"]["percent"] >= 95 and shares["cpp"]["percent"] >= 90
    for part in ("python", "cpp"):
        assert all((ROOT / file).is_file() for file in shares[part]["files"])
