"""python -m bench.gpu_summary FOLDER: what ``make gpu`` left there, in one table."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.results_file import Run, read


def lines_of(run: Run) -> list[str]:
    lines = [f"{run.name}: {run.machine}"]
    for row in run.benchmarks:
        facts = [f"{name} {ratio:.2f}" for name, ratio in row["ratios"].items()]
        share = row.get("share_of_copy_bandwidth")
        if share is not None:
            facts.append(f"{100 * share:.0f} % of copy bandwidth")
        if "host_waits" in row:
            facts.append(f"{row['host_waits']} host waits")
        lines.append(
            f"  {row['subject']:<32} {row['case']:<18} {row['microseconds']:>10.1f} us   "
            f"{', '.join(facts)}"
        )
    return lines


def summary(folder: Path) -> tuple[list[str], bool]:
    """The table, and whether every step passed."""
    steps = read(folder / "steps.jsonl").rows
    lines = []
    for path in sorted(folder.glob("*.json")):
        try:
            lines += lines_of(read(path))
        except ValueError:
            # What a benchmark that was stopped leaves behind.
            lines.append(f"{path.stem}: not finished")
    lines += [f"{each['step']:<12} {each['status']:<14} {each['seconds']:>4} s" for each in steps]
    return lines, all(each["status"] == "passed" for each in steps)


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python -m bench.gpu_summary FOLDER", file=sys.stderr)
        return 2
    lines, passed = summary(Path(sys.argv[1]))
    print("\n".join(lines))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
