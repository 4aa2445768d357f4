"""What the tests of this project reach and notice."""

from __future__ import annotations

from bench.measured import source, table
from bench.results_file import Results


@source
def coverage(results: Results) -> str:
    shares = {row["part"]: row for row in results.read("coverage").rows}
    names = {
        "python": "Python (`fastnode`)",
        "cpp": "C++ (`csrc`)",
        "needs_gpu": "Python that only calls CUDA, without a GPU",
    }
    rows = [
        [name, f"{shares[part]['lines']:,}", f"{shares[part]['percent']} %"]
        for part, name in names.items()
    ]
    return table(["", "lines", "run by the tests"], rows)


@source
def mutations(results: Results) -> str:
    rows = []
    for each in results.read("mutations").rows:
        test = each["caught_by"]
        named = "**no test**" if test is None else f"`{test.partition('[')[0]}`"
        rows.append([f"`{each['file']}`", each["harm"], named])
    return table(["file", "what goes wrong", "first test that fails"], rows)
