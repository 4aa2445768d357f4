"""From the reports of coverage and gcovr to the shares in the docs, on a small project."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import keep_coverage
from bench.results_file import read

ROOT = Path(__file__).parents[2]
HEADER = """
inline int twice(int x) {
  if (x < 0)
    return -1;
  return 2 * x;
}
"""
SOURCES = {
    "fastnode/whole.py": "X = 1\n",
    "fastnode/half.py": "X = 1\nif X == 2:\n    X = 3\n    X = 4\n",
    keep_coverage.NEEDS_GPU: "X = 1\nif X == 2:\n    X = 3\n    X = 4\n",
    "run.py": "import fastnode.whole, fastnode.half, fastnode.engines.cuda_graph.runtime\n",
    "csrc/twice.h": HEADER,
    "csrc/a.cpp": '#include "twice.h"\nint from_a() { return twice(1); }\n',
    "csrc/b.cpp": '#include "twice.h"\nint from_a();\nint main() { from_a(); twice(-1); }\n',
}


@pytest.fixture
def project(tmp_path):
    for name in ("gcovr", "coverage"):
        pytest.importorskip(name)
    if shutil.which("g++") is None or shutil.which("gcov") is None:
        pytest.skip("no g++ with gcov")
    for name, text in SOURCES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def call(*command):
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

    call("g++", "--coverage", "csrc/a.cpp", "csrc/b.cpp", "-o", "run")
    subprocess.run([tmp_path / "run"], check=False)
    call(sys.executable, "-m", "coverage", "run", f"--source={tmp_path}/fastnode", "run.py")
    call(sys.executable, "-m", "coverage", "json", "-o", "python.json")
    call(sys.executable, "-m", "gcovr", "--filter", "csrc/", "--json-summary", "cpp.json")
    return tmp_path


def test_keep_coverage_counts_lines_by_part(project):
    out = project / "coverage.jsonl"
    keep_coverage.main([str(project), "--out", str(out)])
    python, cpp, gpu = read(out).rows
    assert python["files"] == {"fastnode/half.py": 50.0}
    assert (python["part"], python["percent"], python["lines"]) == ("python", 60.0, 5)
    # Each of two lines of the header runs for one of the files that include it.
    assert (cpp["part"], cpp["percent"], cpp["files"]) == ("cpp", 100.0, {})
    assert (gpu["part"], gpu["lines"], gpu["percent"]) == ("needs_gpu", 4, 50.0)


def test_keep_coverage_rounds_shares_down():
    assert keep_coverage.percent(9999, 10000) == 99.9 and keep_coverage.percent(0, 0) == 100
    assert (ROOT / keep_coverage.NEEDS_GPU).is_file()


def test_committed_coverage_is_what_is_asked_for():
    rows = {row["part"]: row for row in read(ROOT / "bench/results/cpu/coverage.jsonl").rows}
    assert rows["python"]["percent"] >= 95 and rows["cpp"]["percent"] >= 90
    for part in ("python", "cpp"):
        assert all((ROOT / file).is_file() for file in rows[part]["files"])
