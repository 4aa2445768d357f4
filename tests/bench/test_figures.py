"""Figures of the docs: what they show, and when they are drawn again."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import figures, tables
from bench.results_file import Results, write

ROOT = Path(__file__).parents[2]
COMMITTED = Results(ROOT / "bench/results/cpu")


def words(svg: str) -> str:
    """The text of a figure."""
    root = ElementTree.fromstring(svg)
    return "\n".join("".join(each.itertext()).strip() for each in root.iter() if "text" in each.tag)


@pytest.fixture
def results(tmp_path):
    """Two rivals and two sizes, of which the fused engine has solved one."""
    ratios = {"torchdiffeq": 4.0, "torchdyn": 2.0}
    rows = [
        {"subject": "dopri5 tanh", "case": case, "ratios": ratios} for case in ("(2, 16)", "(9, 9)")
    ]
    write(tmp_path / "odeint.jsonl", {"device": "A"}, rows)
    fused = {"subject": "forward tanh, 2 threads", "case": "(2, 16)"}
    write(tmp_path / "fused.jsonl", {}, [{**fused, "ratios": {"torchdiffeq": 39.5}}])
    return Results(tmp_path)


def test_speed_is_relative_to_torchdiffeq(results):
    bars = {"torchdyn": 2.0, "fastnode, field in Python": 4.0, "fastnode, fused field": 39.5}
    assert figures.speed(results)["groups"] == {"(2, 16)": bars}


@pytest.mark.parametrize("name", figures.FIGURES)
def test_figures_are_the_same_bytes_each_time(name):
    pytest.importorskip("matplotlib")
    first, second = (figures.FIGURES[name].svg(COMMITTED) for _ in range(2))
    assert first == second and str(ROOT) not in first


def test_figures_show_their_numbers_as_text(results):
    pytest.importorskip("matplotlib")
    shown = words(figures.FIGURES["speed.svg"].svg(results))
    assert "39.5 fastnode, fused field" in shown and "2.00 torchdyn" in shown
    assert "(2, 16)" in shown and "(9, 9)" not in shown
    model = COMMITTED.read("four_pairs").rows[0]
    pairs = words(figures.FIGURES["four_pairs.svg"].svg(COMMITTED))
    assert f"in {model['nfe']} evaluations" in pairs


def test_figures_are_stale_where_results_or_drawing_changed(results, monkeypatch, tmp_path):
    figure = figures.FIGURES["speed.svg"]
    before = figure.digest(results)
    assert re.fullmatch(r"[0-9a-f]{64}", before)
    changed = tmp_path / "figures.py"
    changed.write_text(Path(figures.__file__).read_text() + "#")
    monkeypatch.setattr(figures, "__file__", str(changed))
    assert figure.digest(results) != before
    monkeypatch.undo()
    assert figure.digest(results) == before
    row = results.read("fused").rows[0]
    row["ratios"]["torchdiffeq"] = 39.6
    assert figure.digest(results) != before


def test_check_names_a_figure_that_is_not_of_the_results(tmp_path):
    for page in tables.pages(ROOT):
        copy = tmp_path / page.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(page.read_text())
    images = tmp_path / "docs/images"
    images.mkdir()
    for name in figures.FIGURES:
        images.joinpath(name).write_text((ROOT / "docs/images" / name).read_text())
    assert not tables.stale(tmp_path, COMMITTED)
    (images / "speed.svg").write_text("<svg/>")
    assert list(tables.stale(tmp_path, COMMITTED)) == [images / "speed.svg"]
