"""The page of the committed results, as a browser would read it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench.report import write_report

ROOT = Path(__file__).parents[2]


class Page(HTMLParser):
    """The elements of a page, each with its attributes; they must close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_report_page_loads_its_plots_and_nothing_else(tmp_path):
    pytest.importorskip("matplotlib")
    images = pytest.importorskip("PIL.Image")
    text = write_report(ROOT / "bench/results/cpu", tmp_path).read_text()
    page = Page(text)
    assert not re.findall(r"//|url\(|@import|<script|<link", text)
    assert len(page.all("table")) > 10 and not re.findall(r"<(?:h\d|p|th)></", text)
    plots = {each["src"] for each in page.all("img")}
    assert plots == {path.name for path in tmp_path.glob("*.png")} and len(plots) > 3
    for name in plots:
        picture = images.open(tmp_path / name).convert("L")
        drawn = sum(picture.histogram()[:250]) / (picture.width * picture.height)
        assert 0.01 < drawn < 0.9, name
    shades = {each["style"] for each in page.all("td") if "style" in each}
    assert len({shade for shade in shades if "hsl(140" in shade}) > 5
    assert any("hsl(0 " in shade for shade in shades)
