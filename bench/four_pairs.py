"""The example of four pairs as numbers, for the figure of the docs: python -m bench.four_pairs"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.machine import head
from bench.results_file import write

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))


def main() -> None:
    from demo import plane
    from four_pairs import PARTNERS, run

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench/results/cpu/four_pairs.jsonl"))
    out = parser.parse_args().out
    rows = []
    for outcome in run():
        lines = plane(outcome.trajectories)[::2].transpose(0, 1)
        row = {
            "name": outcome.name,
            "right_one_step": outcome.right_one_step,
            "right_dopri5": outcome.right_dopri5,
            "nfe": outcome.nfe,
        }
        print(row)
        # One list of points for each pair, in the plane of their largest variance.
        points = [[[round(x, 3) for x in point] for point in line] for line in lines.tolist()]
        rows.append({**row, "lines": points})
    write(out, {**head(), "partners": PARTNERS.tolist()}, rows)


if __name__ == "__main__":
    main()
