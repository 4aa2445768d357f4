"""The page of results, and the comparison of two runs."""

from __future__ import annotations

import pytest

from bench.compare import changes, main
from bench.report import write_report
from bench.results_file import read, write


def row(subject, case, ratios, spread=0.1, **facts):
    times = {"microseconds": 400.0, "quartiles": [1.0, 1.0, 1.0 + spread]}
    return {"subject": subject, "case": case, "ratios": ratios, **times, **facts}


def run(path, ratios: dict[str, float], spread: float = 0.01):
    """A file with one benchmark."""
    write(path, {"torch": "2.13.0"}, [row("dopri5", "(2, 16)", ratios, spread)])
    return path


def test_a_fall_beyond_the_spread_is_a_regression(tmp_path, capsys):
    old = run(tmp_path / "old.jsonl", {"torchdiffeq": 4.0, "diffrax": 1.0})
    new = run(tmp_path / "new.jsonl", {"torchdiffeq": 3.0, "diffrax": 1.0})
    assert [each.verdict for each in changes(read(old), read(new))] == ["slower", ""]
    assert main([str(old), str(new)]) == 1
    assert "torchdiffeq" in capsys.readouterr().out


def test_a_fall_within_the_spread_is_none(tmp_path):
    old = run(tmp_path / "old.jsonl", {"torchdiffeq": 4.0}, spread=0.1)
    new = run(tmp_path / "new.jsonl", {"torchdiffeq": 3.0}, spread=0.1)
    assert main([str(old), str(new)]) == 0


def test_runs_without_a_common_benchmark_cannot_be_compared(tmp_path):
    old = run(tmp_path / "old.jsonl", {"torchdiffeq": 4.0})
    new = run(tmp_path / "new.jsonl", {"diffrax": 4.0})
    assert main([str(old), str(new)]) == 2


def test_the_page_holds_every_case_and_ratio(tmp_path):
    run(tmp_path / "odeint.jsonl", {"torch<diffeq>": 4.25})
    page = write_report(tmp_path, tmp_path / "page").read_text()
    assert "(2, 16)" in page and "4.25" in page and "400.0 us" in page
    assert "torch&lt;diffeq&gt;" in page


def test_the_page_shows_error_over_evaluations(tmp_path):
    pytest.importorskip("matplotlib")
    run(tmp_path / "odeint.jsonl", {"torchdiffeq": 4.0})
    counts = {"fastnode": 50, "torchdiffeq": 60}
    errors = {"fastnode": 1e-4, "torchdiffeq": 2e-4}
    solve = {"method": "dopri5", "tolerance": 1e-3, "evaluations": counts, "error": errors}
    write(tmp_path / "detest.jsonl", {}, [solve])
    page = write_report(tmp_path, tmp_path / "page")
    assert "work_precision.png" in page.read_text()
    assert (page.parent / "work_precision.png").stat().st_size > 1000


def test_there_is_a_plot_of_whatever_there_are_results_for(tmp_path):
    pytest.importorskip("matplotlib")
    errors = {"fastnode": 1e-4, "fastnode, fused": 1e-4, "torchdiffeq": 2e-4}
    rivals = {"fastnode, fused": 0.1, "torchdiffeq": 2.0}
    rows = [row("error over time, dopri5", case, rivals, errors=errors) for case in ("0.1", "0.01")]
    grid = {"torchdiffeq": 40.0, "native": 10.0}
    rows += [row("state and batch, fused", f"({s}, {b})", grid) for s in (2, 4) for b in (1, 8)]
    rows.append(row("memory over interval", "reversible", {}, megabytes={"t = 1": 2.0, "t = 8": 2}))
    rows.append(row("flow kernels", "(2, 3)", {"copies of as many bytes": 0.9}))
    write(tmp_path / "work.jsonl", {"torch": "2.13.0"}, rows)
    page = write_report(tmp_path, tmp_path / "page")
    for name in ("error_over_time", "state_and_batch", "memory", "bandwidth"):
        assert f"{name}.png" in page.read_text()
        assert (page.parent / f"{name}.png").stat().st_size > 1000


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(ValueError, match="found none"):
        write_report(tmp_path, tmp_path / "page")
