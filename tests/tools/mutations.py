"""Do the tests notice a wrong line? python -m tests.tools.mutations [--out FILE] [NAME ...]

Each entry of mutants.py changes a line in a copy of the tree, where the tests that should
notice then run until one fails. They pass without the change: that is tried first. C++ is built in
the copy, once whole and then what changed. Ends with 1 if a mutant survived.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from bench.machine import head
from bench.results_file import Row, write
from tests.tools.mutants import MUTANTS, Mutant
from tests.tools.tree import build, copy_tree

FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", flags=re.MULTILINE)
#: An endless loop is noticed too.
PATIENCE = 600


def mutated(text: str, mutant: Mutant) -> str:
    """Raises ValueError unless the old text stands there exactly once."""
    count = text.count(mutant.old)
    if count != 1:
        raise ValueError(
            f"{mutant.name}: old must occur once in {mutant.file}, it occurs {count} times"
        )
    return text.replace(mutant.old, mutant.new)


@contextmanager
def changed(tree: Path, mutant: Mutant) -> Iterator[None]:
    path = tree / mutant.file
    text = path.read_text()
    path.write_text(mutated(text, mutant))
    try:
        yield
    finally:
        path.write_text(text)


def first_failure(tree: Path, tests: Sequence[str]) -> str | None:
    """The first test that fails, None if all pass.

    Raises:
        RuntimeError: no test ran.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    # A file that is changed twice within a second would look the same to Python's cache.
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return f"{tests[0]} (endless)"
    if done.returncode == 0:
        return None
    found = FAILED.search(done.stdout)
    if found is not None:
        return found[1]
    if done.returncode < 0:
        return f"{tests[0]} (signal {-done.returncode})"
    raise RuntimeError(f"no test ran:\n{done.stdout}{done.stderr}")


def run(mutants: Sequence[Mutant]) -> list[Row]:
    """The mutants, each with the test that caught it or None.

    Raises:
        RuntimeError: a test fails on the tree as it is.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_tree(tree)
        for mutant in mutants:
            mutated((tree / mutant.file).read_text(), mutant)
        tests = sorted({test for mutant in mutants for test in mutant.tests})
        if (failed := first_failure(tree, tests)) is not None:
            raise RuntimeError(f"{failed} fails without any mutation")
        # In C++ last: what the others run is the extension that was copied.
        for mutant in sorted(mutants, key=lambda each: each.compiled):
            with changed(tree, mutant):
                if mutant.compiled:
                    build(tree)
                caught = first_failure(tree, mutant.tests)
            print(f"{mutant.name}: {caught or 'SURVIVED'}", flush=True)
            rows.append({**asdict(mutant), "caught_by": caught})
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="all by default")
    parser.add_argument("--out", type=Path, help="a .jsonl file for the results")
    options = parser.parse_args(arguments)
    known = {mutant.name: mutant for mutant in MUTANTS}
    if unknown := set(options.names) - set(known):
        parser.error(f"NAME must be among {', '.join(known)}; got {', '.join(sorted(unknown))}")
    rows = run([known[name] for name in options.names or known])
    if options.out is not None:
        write(options.out, head(), rows)
    return int(any(row["caught_by"] is None for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
