"""Which lines do the tests run? python -m bench.covered [--out FILE]

Builds the extension with gcov's counters in a copy of the tree, runs the whole suite there under
coverage, and writes the share of the lines that ran, by file: those of ``fastnode`` and those of
``csrc`` that g++ compiled. What only calls CUDA is counted apart. Lines that torch.compile traces
and does not call count as not run.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import coverage

from bench.tree import ROOT, build, copy_tree

#: Calls CUDA and nothing else.
NEEDS_GPU = ("fastnode/engines/cuda_graph/runtime.py",)
#: At lower levels no multiplications and additions are contracted, and results are others.
COMPILER = """#!/bin/sh
exec {compiler} "$@" -O2 --coverage -fprofile-update=atomic
"""

#: By file, for each line that can run whether it did.
Lines = Mapping[str, Mapping[int, bool]]


def build_with_counters(tree: Path) -> None:
    wrapper = tree / "out" / "c++"
    wrapper.parent.mkdir()
    wrapper.write_text(COMPILER.format(compiler=os.environ.get("CXX", "g++")))
    wrapper.chmod(0o755)
    build(tree, CXX=str(wrapper))


def run_tests(tree: Path, tests: Iterable[str]) -> int:
    """Whole paths, as tests start processes in other folders too."""
    command = [sys.executable, "-m", "coverage", "run", f"--source={tree / 'fastnode'}"]
    command += [f"--data-file={tree / '.coverage'}", "-m", "pytest", "-q", "--timeout=900", *tests]
    return subprocess.run(command, cwd=tree).returncode


def python_lines(tree: Path) -> Lines:
    """Raises coverage.exceptions.NoDataError if no run left its data in ``tree``."""
    data = coverage.Coverage(data_file=tree / ".coverage", config_file=tree / "pyproject.toml")
    data.combine([str(tree)])
    found = {}
    for file in data.get_data().measured_files():
        _, can_run, _, missed, _ = data.analysis2(file)
        name = str(Path(file).relative_to(tree))
        found[name] = {line: line not in missed for line in can_run}
    return found


def cpp_lines(tree: Path, gcov: str = "gcov") -> Lines:
    """A line has run if it has in any file that includes it."""
    found: dict[str, dict[int, bool]] = defaultdict(dict)
    for data in sorted(tree.glob("build/**/*.gcda")):
        command = [gcov, "--json-format", "--stdout", str(data)]
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True)
        for report in map(json.loads, done.stdout.splitlines()):
            add_report(found, tree, report)
    return found


def add_report(found: dict[str, dict[int, bool]], tree: Path, report: dict[str, Any]) -> None:
    """The lines of one object file, as gcov has them."""
    for file in report["files"]:
        path = (tree / file["file"]).resolve()
        if not path.is_relative_to(tree.resolve() / "csrc"):
            continue
        lines = found[str(path.relative_to(tree.resolve()))]
        for line in file["lines"]:
            number = line["line_number"]
            lines[number] = lines.get(number, False) or line["count"] > 0


def summary(lines: Lines) -> dict[str, Any]:
    """Percentages: in all, and of each file whose lines did not all run."""
    total = sum(map(len, lines.values()))
    ran = sum(sum(each.values()) for each in lines.values())
    shares = {file: percent(sum(each.values()), len(each)) for file, each in sorted(lines.items())}
    return {
        "percent": percent(ran, total),
        "lines": total,
        "files": {file: share for file, share in shares.items() if share < 100},
    }


def percent(part: int, whole: int) -> float:
    """Rounded down, so that 100 is all of them."""
    return 1000 * part // whole / 10 if whole else 100.0


def split(lines: Lines, patterns: Iterable[str]) -> tuple[Lines, Lines]:
    """The files of none of the patterns, and the others."""
    apart = {f for f in lines if any(fnmatch(f, pattern) for pattern in patterns)}
    return {f: x for f, x in lines.items() if f not in apart}, {f: lines[f] for f in apart}


def missed(lines: Lines) -> str:
    """One line of text for each file of which lines did not run."""
    out = io.StringIO()
    for file, each in sorted(lines.items()):
        if numbers := [str(n) for n, ran in sorted(each.items()) if not ran]:
            print(f"{file}: {', '.join(numbers)}", file=out)
    return out.getvalue()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tree", type=Path, default=ROOT / "out" / "coverage", help="the copy")
    parser.add_argument("--out", type=Path, help="a JSON file for the shares")
    parser.add_argument("tests", nargs="*", help="all by default")
    options = parser.parse_args(arguments)
    tree: Path = options.tree.resolve()
    if tree.exists():
        parser.error(f"tree must not exist yet, and {tree} does")
    tree.mkdir(parents=True)
    copy_tree(tree)
    build_with_counters(tree)
    failed = run_tests(tree, options.tests)
    python, of_gpu = split(python_lines(tree), NEEDS_GPU)
    cpp = cpp_lines(tree)
    print(missed(python), missed(cpp), sep="\n")
    results = {"python": summary(python), "cpp": summary(cpp), "needs_gpu": summary(of_gpu)}
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    print({name: part["percent"] for name, part in results.items()})
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
