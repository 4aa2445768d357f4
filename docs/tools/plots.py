"""Draws the pictures of docs/plots.md by the code above them: python docs/tools/plots.py [FOLDER]

After each block of code that leaves a figure, that figure is saved as the next picture of the page.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1]
PART = re.compile(
    r"^```python\n(?P<code>.*?)^```$|\]\(images/(?P<picture>\w+\.svg)\)", re.DOTALL | re.MULTILINE
)


def draw(page: Path, folder: Path) -> list[Path]:
    """Runs the page and saves its pictures into the folder; returns their paths."""
    import matplotlib

    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "fastnode", "font.size": 9}
    names: dict[str, Any] = {}
    drawn = []
    for part in PART.finditer(page.read_text()):
        if part["code"] is not None:
            exec(part["code"], names)
            continue
        drawn.append(folder / part["picture"])
        names.pop("figure").savefig(drawn[-1], metadata={"Date": None})
    return drawn


if __name__ == "__main__":
    draw(DOCS / "plots.md", Path(sys.argv[1]) if sys.argv[1:] else DOCS / "images")
