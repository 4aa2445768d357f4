"""The papers' tables at CPU size, or with --full at theirs: python -m bench.reproduce

Every row is kept as it ends, so a broken run continues where it was, within a row from its last
checkpoint. At the end, and with --write alone, the page and its plots are written; rows that
were not run say so. FASTNODE_DATA names the folder with the data.
"""

from __future__ import annotations

import argparse
import sys
from itertools import groupby
from pathlib import Path

import torch

from bench.reproduce.page import write_page
from bench.reproduce.rows import SECTIONS, Row, rows
from bench.reproduce.run import failed, kept, run, time_predictions


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--full", action="store_true", help="the papers' sizes, for a GPU")
    add("--only", nargs="+", default=[""], metavar="PREFIX", help="rows whose names begin so")
    add("--write", action="store_true", help="write the page from what is there, run nothing")
    add("--out", type=Path, default=Path("out/reproduce.jsonl"), help="file of the rows")
    add("--runs", type=Path, default=Path("out/reproduce"), help="folder of checkpoints")
    add("--page", type=Path, default=Path("docs/reproduction.md"), help="plots go beside it")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    everything = rows(arguments.full)
    if not arguments.write:
        chosen = [row for row in everything if row.name.startswith(tuple(arguments.only))]
        if not chosen:
            parser.error(f"--only must begin with one of {', '.join(SECTIONS)}")
        run_all(chosen, arguments)
    write_page(everything, arguments.out, arguments.page)


def run_all(chosen: list[Row], arguments: argparse.Namespace) -> None:
    device = torch.device(arguments.device)
    before = kept(arguments.out, chosen)
    for number, (row, content) in enumerate(zip(chosen, before, strict=True), 1):
        if content is not None:
            continue
        print(f"{number} of {len(chosen)}: {row.name}", flush=True)
        try:
            content = run(row, arguments.out, arguments.runs, device)
        except FileNotFoundError as error:
            print(f"not run: {error}", file=sys.stderr)
        except FloatingPointError as error:
            failed(row, arguments.out, error)
        else:
            results = content["results"]
            for name, score in results["solvers"].items():
                print(f"  {name}: {score[results['metric']]:.4g}, NFE {score['nfe']:.4g}")
    for key, group in groupby(chosen, key=lambda row: (row.section, row.index)):
        if key[0].endswith(("-local", "-paper")):
            time_predictions(list(group), arguments.out, arguments.runs, device)


if __name__ == "__main__":
    main()
