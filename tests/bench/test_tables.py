"""Numbers on their way from results to pages."""

from __future__ import annotations

import pytest

from bench import demo
from bench.measured import number, table
from bench.results_file import Results, write
from bench.tables import rewritten
from bench.tables_slower import slower
from bench.tables_solving import odeint
from bench.tables_training import ADJOINTS, adjoint_memory, demo_digits, demo_regression


@pytest.fixture
def results(tmp_path):
    row = {"subject": "dopri5 tanh", "case": "(2, 16)", "ratios": {"torchdiffeq": 4.25}}
    write(tmp_path / "odeint.jsonl", {}, [row])
    milliseconds = {"fastnode": 41.7, "torch": 950.0}
    rows = [{"module": name, "milliseconds": time} for name, time in milliseconds.items()]
    write(tmp_path / "imports.jsonl", {}, rows)
    return Results(tmp_path)


def test_a_block_is_replaced_and_the_rest_is_kept(results):
    page = "Before.\n\n<!-- measured: imports -->\nold\n<!-- /measured -->\n\nAfter.\n"
    written = rewritten(page, results)
    assert written.startswith("Before.\n") and written.endswith("\nAfter.\n")
    assert "42 ms" in written and "old" not in written
    assert rewritten(written, results) == written


def test_an_unknown_name_is_told(results):
    with pytest.raises(ValueError, match="measured must be one of .*, got 'nothing'"):
        rewritten("<!-- measured: nothing -->\n<!-- /measured -->", results)


@pytest.mark.parametrize("page", ["<!-- measured: imports -->\n", "<!-- /measured -->\n"])
def test_a_comment_without_its_partner_is_told(results, page):
    with pytest.raises(ValueError, match="a block must begin with"):
        rewritten(page, results)


def test_a_benchmark_that_is_not_there_is_named(results):
    assert results.ratio("odeint", "dopri5 tanh", "(2, 16)", "torchdiffeq") == 4.25
    with pytest.raises(KeyError, match="odeint.jsonl has no benchmark 'rk4'"):
        results.ratio("odeint", "rk4", "(2, 16)", "torchdiffeq")


def test_memory_is_read_from_the_run_of_all_adjoints(results):
    rows = [
        {"subject": "memory over interval", "case": name, "megabytes": {"t = 4": 9, "t = 16": 85.4}}
        for name in (*ADJOINTS, "torchdiffeq backprop")
    ]
    rows[-1]["megabytes"]["t = 16"] = 700.0
    write(results.folder / "work.jsonl", {}, rows)
    written = adjoint_memory(results)
    assert "| 4 | 9 | 9 | 9 | 9 | 9 | 9 |" in written
    assert "| 16 | 85 | 85 | 85 | 85 | 85 | 700 |" in written


@pytest.mark.parametrize("present", [["torchdyn"], ["torchode, compiled", "diffrax, compiled"]])
def test_rivals_that_took_no_part_have_no_column(results, present):
    ratios = {"torchdiffeq": 4.0, **dict.fromkeys(present, 2.0)}
    rows = [
        {"subject": f"dopri5 {name}", "case": "(2, 16, 1)", "ratios": ratios}
        for name in ("tanh", "silu")
    ]
    write(results.folder / "odeint.jsonl", {}, rows)
    head, _, row = odeint(results).splitlines()
    assert head.count("|") == row.count("|") == 4 + len(present)
    assert all(f"{name.removesuffix(', compiled')}, tanh" in head for name in present)


def test_all_that_others_win_is_told_and_nothing_else(results):
    ratios = {"diffrax, compiled": 0.5, "torchdiffeq": 4.0, "backprop": 0.7}
    rows = [{"subject": "dopri5", "case": f"({n}, 16)", "ratios": ratios} for n in (64, 2)]
    write(results.folder / "fused.jsonl", {}, rows)
    *_, last = slower(results).splitlines()
    assert last == "| `fused.jsonl` | dopri5 | diffrax, compiled | (64, 16): 0.5; (2, 16): 0.5 |"
    assert "torchdiffeq" not in slower(results) and "backprop" not in slower(results)


def test_numbers_have_three_digits():
    assert [number(x) for x in (169.8, 41.94, 5.2, 0.849, 12345.6)] == [
        "170",
        "41.9",
        "5.20",
        "0.85",
        "12,346",
    ]
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_arguments_of_one_line_are_told_apart():
    pytest.importorskip("griffe")
    from docs.tools.arguments import split_arguments

    docstring = "Args:\n    a, b: both\n        of them.\n    c: one.\n\nReturns:\n    x, y: no."
    both = "both\n        of them."
    assert split_arguments(docstring) == (
        f"Args:\n    a: {both}\n    b: {both}\n    c: one.\n\nReturns:\n    x, y: no."
    )


def test_the_demo_is_kept_as_rows_and_shown(results):
    solvers = ("euler-1", "euler-10", "dopri5")

    def part(metric, *methods):
        rows = []
        for method, score in methods:
            scores = {name: {metric: score, "nfe": 20.0} for name in solvers}
            row = {"method": method, "steps": 600, "seconds": 2.5, "nfe": 1.0, "metric": metric}
            rows.append(row | {"solvers": scores})
        return rows

    found = {
        "digits": part("accuracy", ("simfree", 0.9875), ("node", 0.98)),
        "regression": part("rmse", ("simfree", 0.03), ("node", 0.5)),
        "samples_per_second": {"simfree": 90000.4, "node": 9000.0, "torchdiffeq": 3000.0},
    }
    head = {"device": "a machine", "torch": "2", "threads": 2, "regression_std": 0.35}
    write(results.folder / "demo.jsonl", head, demo.rows(found))
    written = demo_digits(results)
    assert "| simfree | 600 | 1.0 | 90,000 | 98.8 % | 98.8 % |" in written
    assert "| NODE by torchdiffeq |  |  | 3,000 |  |  |" in written
    assert "a machine, 2 threads" in written
    written = demo_regression(results)
    assert "| NODE | 600 | 1.0 | 0.500 | 0.500 | 0.500 |" in written and "RMSE of 0.350" in written
