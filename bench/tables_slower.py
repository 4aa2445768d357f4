"""The benchmarks that another library wins, each from committed results."""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any

from bench.measured import Results, number, source, table

#: How the names of references begin that are not another way of our own.
OTHERS = ("torchdiffeq", "torchode", "torchdyn", "diffrax", "compile", "plain")


@source
def slower(results: Results) -> str:
    def kind(row: tuple[Any, ...]) -> tuple[str, ...]:
        return row[:3]

    lost = []
    for path in sorted(results.folder.glob("*.json")):
        for each in json.loads(path.read_text()).get("benchmarks", []):
            found = each["extra_info"]
            for rival, ratio in found.get("ratios", {}).items():
                if ratio < 1 and rival.startswith(OTHERS):
                    lost.append((path.name, found["subject"], rival, found["case"], ratio))
    rows = []
    for (file, subject, rival), cases in groupby(sorted(lost, key=kind), key=kind):
        where = "; ".join(f"{case}: {number(ratio)}" for *_, case, ratio in cases)
        rows.append([f"`{file}`", subject, rival, where])
    return table(
        ["", "benchmark", "against", "case: how many times faster (below 1: slower)"], rows
    )
