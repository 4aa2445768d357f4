"""Writes measured numbers into README and docs: python -m bench.tables [--check]

A page says where by a pair of comments, between which this program alone writes:

    <!-- measured: NAME -->
    <!-- /measured -->

NAME is a function of bench/tables_*.py, which read bench/results. Figures (bench/figures.py) are
drawn too.
``--check`` writes nothing and fails where a page or a figure is not what the results say.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from bench import (  # noqa: F401  they fill SOURCES
    tables_reproduction,
    tables_slower,
    tables_solving,
    tables_testing,
    tables_training,
)
from bench.figures import FIGURES
from bench.measured import SOURCES
from bench.results_file import Results
from fastnode.training.checkpoint import write_atomically

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r"<!-- measured: (?P<name>[\w ]+) -->\n(?P<text>.*?)<!-- /measured -->", flags=re.DOTALL
)


def pages(root: Path = ROOT) -> list[Path]:
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def rewritten(text: str, results: Results) -> str:
    """A page with its blocks as the results have them.

    Raises:
        ValueError: a block asks for what there is not, or a comment has no partner.
    """
    for word in ("measured: ", "/measured"):
        if text.count(f"<!-- {word}") != len(BLOCK.findall(text)):
            raise ValueError("a block must begin with <!-- measured: NAME --> and end with its /")

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in SOURCES:
            raise ValueError(f"measured must be one of {', '.join(SOURCES)}, got {name!r}")
        return f"<!-- measured: {name} -->\n\n{SOURCES[name](results)}\n\n<!-- /measured -->"

    return BLOCK.sub(block, text)


def stale(root: Path, results: Results) -> dict[Path, Callable[[], str]]:
    """The pages and figures that are not as the results have them, each with what makes its text.

    A figure is known by its digest, so that to check it draws nothing.
    """
    found: dict[Path, Callable[[], str]] = {}
    for page in pages(root):
        text = rewritten(page.read_text(), results)
        if text != page.read_text():
            found[page] = lambda text=text: text
    for name, figure in FIGURES.items():
        path = root / "docs/images" / name
        if not path.exists() or figure.digest(results) not in path.read_text():
            found[path] = lambda figure=figure: figure.svg(results)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args(arguments).check
    found = stale(ROOT, Results(ROOT / "bench/results/cpu"))
    for path, text in found.items():
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text().encode())
        print(f"{'stale' if check else 'written'}: {path.relative_to(ROOT)}")
    return int(check and bool(found))


if __name__ == "__main__":
    raise SystemExit(main())
