"""Tables of what was reproduced of papers."""

from __future__ import annotations

from bench.measured import source
from bench.reproduce.page import body
from bench.reproduce.rows import rows
from bench.results_file import Results


@source
def reproduction(results: Results) -> str:
    return body(rows(full=False), results.folder / "reproduce.jsonl", "reproduction")
