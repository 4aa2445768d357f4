"""That the list of mutants fits the tree; what each does to the tests is run by make mutations."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from bench.results_file import read
from tests.tools import mutations
from tests.tools.mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "cpu" / "mutations.jsonl"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_mutant_changes_one_place(mutant):
    text = (ROOT / mutant.file).read_text()
    assert mutations.mutated(text, mutant) != text
    assert all((ROOT / test).is_file() for test in mutant.tests)


def test_committed_results_match_the_list_of_mutants():
    rows = read(RESULTS).rows
    caught = {row.pop("name"): row.pop("caught_by") for row in rows}
    assert set(caught) == {mutant.name for mutant in MUTANTS}
    assert None not in caught.values()
    listed = json.loads(json.dumps([asdict(mutant) for mutant in MUTANTS]))
    for row in listed:
        row.pop("name")
        assert row in rows, "run: make mutations"


@pytest.fixture
def tree(tmp_path):
    """A few lines of a project, of which one test takes care."""
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\npythonpath = ['.']\n")
    (tmp_path / "sums.py").write_text("def add(a, b):\n    return a + b\n\n\nUNUSED = 1\n")
    test = "from sums import add\n\n\ndef test_add():\n    assert add(1, 2) == 3\n"
    (tmp_path / "test_sums.py").write_text(test)
    return tmp_path


def mutant_of(old, new):
    return Mutant("name", "sums.py", old, new, "", ("test_sums.py",))


def test_a_mutant_is_caught_and_undone(tree):
    before = (tree / "sums.py").read_text()
    with mutations.changed(tree, mutant_of("a + b", "a - b")):
        assert mutations.first_failure(tree, ["test_sums.py"]) == "test_sums.py::test_add"
    assert (tree / "sums.py").read_text() == before
    with mutations.changed(tree, mutant_of("UNUSED = 1", "UNUSED = 2")):
        assert mutations.first_failure(tree, ["test_sums.py"]) is None


def test_a_text_that_occurs_not_once_is_refused(tree):
    text = (tree / "sums.py").read_text()
    for old, count in (("a", 3), ("c * d", 0)):
        with pytest.raises(ValueError, match=f"it occurs {count} times"):
            mutations.mutated(text, mutant_of(old, "b"))


def test_tests_that_do_not_run_prove_nothing(tree):
    with pytest.raises(RuntimeError, match="no test ran"):
        mutations.first_failure(tree, ["test_others.py"])
