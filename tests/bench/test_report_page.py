"""The page of the committed results, as a browser would read it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench.report import write_report

ROOT = Path(__file__).parents[2]
#: Elements that have no end tag.
VOID = ("meta", "img", "br")


class Page(HTMLParser):
    """What a page loads and shows; an end tag that closes another element is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[tuple[str, str]] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.words.append((tag, ""))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        tag, before = self.words[-1]
        self.words[-1] = tag, before + data.strip()

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.attributes if name == tag]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    pytest.importorskip("matplotlib")
    return write_report(ROOT / "bench/results/cpu", tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(written):
    return Page(written.read_text())


def test_report_closes_every_element_and_names_what_it_shows(page):
    assert not page.open
    assert all(words for tag, words in page.words if tag in ("h1", "h2", "h3", "p", "th"))
    assert len(page.all("table")) > 10


def test_report_loads_its_plots_and_nothing_else(page, written):
    images = [each["src"] for each in page.all("img")]
    assert set(images) == {path.name for path in written.parent.glob("*.png")}
    assert len(images) > 3 and all(each["alt"] for each in page.all("img"))
    assert not re.findall(r"//|url\(|@import|<script|<link", written.read_text())


def test_report_plots_are_not_blank(page, written):
    images = pytest.importorskip("PIL.Image")
    for each in page.all("img"):
        picture = images.open(written.parent / each["src"]).convert("RGB")
        colours = picture.getcolors(1 << 24)
        drawn = sum(count for count, colour in colours if min(colour) < 250)
        assert 0.01 < drawn / (picture.width * picture.height) < 0.9


def test_report_tables_fit_the_page_and_shade_ratios(page, written):
    """Wide tables scroll by themselves; the shades go from red to green."""
    assert "overflow-x: auto" in written.read_text() and "max-width: 100%" in written.read_text()
    shades = {each["style"] for each in page.all("td") if "style" in each}
    assert len({shade for shade in shades if "hsl(140" in shade}) > 5
    assert any("hsl(0 " in shade for shade in shades)
