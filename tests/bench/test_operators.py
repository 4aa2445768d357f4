"""Operators that benchmarks bring along."""

from __future__ import annotations

from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench"


def test_no_file_of_benchmarks_defines_one():
    """pytest imports such a file under a name of its own, and who imports it defines the operator
    again: torch frees the first definition, which calls through it then read."""
    files = [*BENCH.glob("bench_*.py"), *BENCH.glob("gpu*.py")]
    assert len(files) > 10
    for path in files:
        assert "torch.library" not in path.read_text(), path.name
