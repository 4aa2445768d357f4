"""The papers' tables: rows that are kept, continued and shown."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from bench.reproduce.page import write_page
from bench.reproduce.rows import SECTIONS, Row, rows
from bench.reproduce.run import failed, kept, run, time_predictions

CPU = torch.device("cpu")
SMALL = {"dataset": "spiral", "steps": 3, "batch": 8, "tolerance": 1e-3}
VANILLA = Row("spiral", "vanilla", 0, SMALL, "paper's own")
LOCAL = Row(
    "spiral", "unbiased", 0, {**SMALL, "regularizer": "local-unbiased", "hold_k1": False}, "-"
)


@pytest.fixture
def results(tmp_path):
    return tmp_path / "rows.jsonl"


def only(results, row):
    """What one row left behind."""
    return kept(results, [row])[0]


@pytest.mark.parametrize("full", [False, True])
def test_every_row_has_a_name_of_its_own_and_a_section(full):
    every = rows(full)
    assert len({row.name for row in every}) == len(every)
    assert {row.section for row in every} == set(SECTIONS) - ({"uci-time"} if full else set())
    for row in every:
        assert row.name.replace("-", "").replace("=", "").isalnum()


def test_a_row_is_kept_and_another_budget_is_another_row(results, tmp_path):
    assert only(results, VANILLA) is None
    content = run(VANILLA, results, tmp_path / "runs", CPU)
    found = only(results, VANILLA)
    assert found == {"name": VANILLA.name, **json.loads(json.dumps(content))}
    assert content["results"]["solvers"]["tsit5"]["nfe"] > 0
    assert str(tmp_path) not in results.read_text()
    assert only(results, replace(VANILLA, settings={**SMALL, "steps": 4})) is None


def test_a_row_replaces_its_predecessor_and_no_other(results):
    for row, message in ((VANILLA, "first"), (LOCAL, "other"), (VANILLA, "second")):
        failed(row, results, FloatingPointError(message))
    found = kept(results, [LOCAL, VANILLA])
    assert [each["failed"] for each in found if each] == ["other", "second"]


def test_curves_are_kept_where_a_plot_reads_them(results, tmp_path):
    shown = Row("mnist-local", "vanilla", 0, SMALL, "-")
    assert "curve" not in run(VANILLA, results, tmp_path / "runs", CPU)
    assert [step for step, _, _ in run(shown, results, tmp_path / "runs", CPU)["curve"]][0] == 1


def test_the_page_shows_figures_budget_and_what_was_not_run(results, tmp_path):
    for row in (VANILLA, LOCAL):
        run(row, results, tmp_path / "runs", CPU)
    time_predictions([VANILLA, LOCAL], results, tmp_path / "runs", CPU)
    assert only(results, LOCAL)["seconds_per_batch"] > 0
    other = Row("spiral", "biased", 0, {**SMALL, "seed": 7}, "-")
    broken = Row("mnist-local", "vanilla", 0, {"dataset": "mnist"}, "-")
    failed(broken, results, FloatingPointError("the loss became nan"))
    page = tmp_path / "page.md"
    write_page([VANILLA, LOCAL, other, broken], results, page)
    text = page.read_text()
    part = text.split("## Spiral")[1].split("## ")[0]
    lines = {line.split("|")[1].strip(): line for line in part.splitlines() if line[:1] == "|"}
    assert "paper's own" in lines["vanilla"]
    assert "3 steps of 8, 1000 samples, float32" in lines["unbiased"]
    evaluations = [
        only(results, row)["results"]["solvers"]["tsit5"]["nfe"] for row in (LOCAL, VANILLA)
    ]
    assert f"{evaluations[0] / evaluations[1]:.2f}" in lines["unbiased"].split("|")[4]
    assert "not run" in lines["biased"]
    assert "diverged: the loss became nan" in text


def test_the_page_of_nothing_says_so(results, tmp_path):
    page = tmp_path / "page.md"
    write_page(rows(False), results, page)
    text = page.read_text()
    assert f"0 of {len(rows(False))} rows" in text and "![" not in text
    assert text.count("not run") > 20
