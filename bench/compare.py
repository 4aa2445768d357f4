"""Says what became slower between two runs: ``python -m bench.compare OLD NEW``.

OLD and NEW are files of one suite, kept ones or pytest-benchmark's JSON. What is compared is the
ratio to each reference of the same run, which does not change with the machine's mood. A ratio that
fell by more than three times the spread of both runs' own times, and by more than 5 %, is a
regression; then the exit status is 1.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.results_file import Run, read, spread

SPREADS, LEAST = 3.0, 0.05


@dataclass
class Change:
    """How a ratio to a reference changed."""

    subject: str
    case: str
    reference: str
    old: float
    new: float
    #: Relative change that the runs' own spread explains.
    noise: float

    @property
    def relative(self) -> float:
        return self.new / self.old - 1

    @property
    def verdict(self) -> str:
        if abs(self.relative) <= self.noise:
            return ""
        return "faster" if self.relative > 0 else "slower"


def changes(old: Run, new: Run) -> Iterator[Change]:
    """Of the benchmarks and references that both runs have."""
    before = {(row["subject"], row["case"]): row for row in old.benchmarks}
    for row in new.benchmarks:
        earlier = before.get((row["subject"], row["case"]))
        if earlier is None:
            continue
        noise = max(LEAST, SPREADS * math.hypot(spread(earlier), spread(row)))
        for name, ratio in row["ratios"].items():
            if (was := earlier["ratios"].get(name, 0)) > 0:
                yield Change(row["subject"], row["case"], name, was, ratio, noise)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    chosen = parser.parse_args(arguments)
    found = list(changes(read(chosen.old), read(chosen.new)))
    if not found:
        print("the two runs have no benchmark in common")
        return 2
    for each in found:
        print(
            f"{each.subject:<28} {each.case:<16} {each.reference:<24} {each.old:>8.2f} -> "
            f"{each.new:>8.2f}  {100 * each.relative:>+6.1f} % (noise {100 * each.noise:.0f} %) "
            f"{each.verdict}"
        )
    return int(any(each.verdict == "slower" for each in found))


if __name__ == "__main__":
    sys.exit(main())
