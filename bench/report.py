"""One page of all results: ``python -m bench.report [FOLDER] --out out/report``.

FOLDER holds the results of one device, bench/results/cpu by default. Written are index.html,
which needs nothing else but the plots beside it, and the plots as PNG (with matplotlib).
"""

from __future__ import annotations

import argparse
import html
import math
from itertools import groupby
from pathlib import Path
from typing import Any

from bench.measured import number
from bench.plots import draw_all
from bench.results_file import Row, Run, read, read_benchmarks

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd }
td { white-space: nowrap; vertical-align: top }
th:first-child, td:first-child { text-align: left }
img { max-width: 100% }
.device { color: #555 }
"""


def shade(ratio: float) -> str:
    """Green where we are faster, red where we are slower, the deeper the more; full at 10 times."""
    depth = min(abs(math.log10(max(ratio, 1e-3))), 1.0)
    return f"hsl({140 if ratio >= 1 else 0} 55% {97 - 35 * depth:.0f}%)"


def table(rows: list[Row]) -> str:
    """How many times faster we are, a row for each case and a column for each reference."""
    names = list(dict.fromkeys(name for row in rows for name in row["ratios"]))
    shown = ("evaluations", "errors", "megabytes")
    facts = [name for name in shown if any(name in row for row in rows)]
    # A benchmark of memory has no times.
    timed = ["time"] if any(row["microseconds"] for row in rows) else []
    head = "".join(f"<th>{html.escape(x)}</th>" for x in ["case", *timed, *names, *facts])
    lines = []
    for row in rows:
        cells = [f"<td>{html.escape(row['case'])}</td>"]
        cells += [f"<td>{duration(row['microseconds'])}</td>" for _ in timed]
        for name in names:
            ratio = row["ratios"].get(name)
            style = "" if ratio is None else f' style="background: {shade(ratio)}"'
            cells.append(f"<td{style}>{'' if ratio is None else number(ratio)}</td>")
        cells += [f"<td>{fact(row.get(name))}</td>" for name in facts]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def duration(microseconds: float) -> str:
    for size, unit in ((1e6, "s"), (1e3, "ms")):
        if microseconds >= size:
            return f"{microseconds / size:.2f} {unit}"
    return f"{microseconds:.1f} us"


def fact(value: Any) -> str:
    """A number, or a line for each of several."""
    if isinstance(value, dict):
        return "<br>".join(f"{html.escape(name)}: {fact(each)}" for name, each in value.items())
    if isinstance(value, float):
        return f"{value:.3g}"
    return "" if value is None else html.escape(str(value))


def section(run: Run) -> str:
    parts = [f"<h2>{html.escape(run.name)}</h2>"]
    parts.append(f'<p class="device">{html.escape(run.machine)}</p>')

    def subject_of(row: Row) -> str:
        return row["subject"]

    for subject, rows in groupby(sorted(run.benchmarks, key=subject_of), subject_of):
        parts.append(f"<h3>{html.escape(subject)}</h3>{table(list(rows))}")
    return "".join(parts)


def write_report(folder: Path, out: Path) -> Path:
    """Returns the page.

    Raises:
        ValueError: there are no results in the folder.
    """
    runs = list(read_benchmarks(folder)) if folder.is_dir() else []
    if not runs:
        raise ValueError(f"{folder} must hold files of benchmarks, found none")
    out.mkdir(parents=True, exist_ok=True)
    detest = folder / "detest.jsonl"
    problems = read(detest).rows if detest.exists() else []
    pictures = draw_all([row for run in runs for row in run.benchmarks], problems, out)
    body = "".join(
        f'<h2>{title}</h2><p>{caption}</p><img src="{name}" alt="{title}">'
        for name, title, caption in pictures
    )
    body += "".join(section(run) for run in runs)
    page = out / "index.html"
    page.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>fastnode: results</title>'
        f"<style>{STYLE}</style><h1>How many times faster, by device: {html.escape(folder.name)}"
        f"</h1><p>Medians of interleaved rounds; above 1 fastnode is faster.</p>{body}</html>"
    )
    return page


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    default = Path(__file__).parent / "results" / "cpu"
    parser.add_argument("folder", type=Path, nargs="?", default=default)
    parser.add_argument("--out", type=Path, default=Path("out/report"))
    chosen = parser.parse_args(arguments)
    try:
        print(write_report(chosen.folder, chosen.out))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
