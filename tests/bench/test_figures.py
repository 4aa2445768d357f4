"""Figures of the docs: what they show, and when they are drawn again."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import figures
from bench.results_file import Results, write

ROOT = Path(__file__).parents[2]


@pytest.fixture
def results(tmp_path):
    """A rival and two sizes, of which the fused engine has solved one."""
    row = {"subject": "dopri5 tanh", "ratios": {"torchdiffeq": 4.0, "torchdyn": 2.0}}
    rows = [{**row, "case": case} for case in ("(2, 16)", "(9, 9)")]
    write(tmp_path / "odeint.jsonl", {"device": "A"}, rows)
    fused = {"subject": "forward tanh, 2 threads", "case": "(2, 16)"}
    write(tmp_path / "fused.jsonl", {}, [{**fused, "ratios": {"torchdiffeq": 39.5}}])
    return Results(tmp_path)


def test_speed_figure_shows_ratios_to_torchdiffeq(results):
    pytest.importorskip("matplotlib")
    root = ElementTree.fromstring(figures.FIGURES["speed.svg"].svg(results))
    words = "\n".join("".join(each.itertext()) for each in root.iter() if "text" in each.tag)
    for shown in ("(2, 16)", "2.00 torchdyn", "4.00 fastnode, field", "39.5 fastnode, fused"):
        assert shown in words
    assert "(9, 9)" not in words


@pytest.mark.parametrize("name", figures.FIGURES)
def test_figures_are_the_same_bytes_each_time(name):
    pytest.importorskip("matplotlib")
    committed = Results(ROOT / "bench/results/cpu")
    first, second = (figures.FIGURES[name].svg(committed) for _ in range(2))
    assert first == second and figures.FIGURES[name].digest(committed) in first


def test_figure_digest_follows_results_and_drawing(results, monkeypatch, tmp_path):
    figure = figures.FIGURES["speed.svg"]
    found = [figure.digest(results)]
    results.read("fused").rows[0]["ratios"]["torchdiffeq"] = 39.6
    found.append(figure.digest(results))
    changed = tmp_path / "figures.py"
    changed.write_text("# drawn in another way")
    monkeypatch.setattr(figures, "__file__", str(changed))
    found.append(figure.digest(results))
    assert len(set(found)) == 3
