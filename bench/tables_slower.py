"""The benchmarks that another library wins, each from committed results."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from bench.measured import number, source, table
from bench.results_file import Results, read_benchmarks

#: How the names of references begin that are other libraries or plain PyTorch.
OTHERS = ("torchdiffeq", "torchode", "torchdyn", "diffrax", "compile", "plain")


@source
def slower(results: Results) -> str:
    def kind(row: tuple[Any, ...]) -> tuple[str, ...]:
        return row[:3]

    lost = []
    for run in read_benchmarks(results.folder):
        for each in run.benchmarks:
            for rival, ratio in each["ratios"].items():
                if ratio < 1 and rival.startswith(OTHERS):
                    where = (f"{run.name}.jsonl", each["subject"], rival)
                    lost.append((*where, each["case"], ratio))
    rows = []
    for (file, subject, rival), cases in groupby(sorted(lost, key=kind), key=kind):
        where = "; ".join(f"{case}: {number(ratio)}" for *_, case, ratio in cases)
        rows.append([f"`{file}`", subject, rival, where])
    return table(
        ["", "benchmark", "against", "case: how many times faster (below 1: slower)"], rows
    )
