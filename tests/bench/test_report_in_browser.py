"""The page of the committed results, looked at in headless Chromium."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bench.report import write_report

ROOT = Path(__file__).parents[2]
#: The browser's own answer to what a reader would see: what did not load, what sticks out.
QUESTION = """<script>addEventListener("load", () => {
    const found = {
        images: document.images.length,
        broken: [...document.images].filter(each => !each.naturalWidth).length,
        tables: document.querySelectorAll("table").length,
        sticksOut: document.documentElement.scrollWidth - innerWidth,
        empty: [...document.querySelectorAll("th, h2, h3")].filter(each => !each.innerText).length,
    };
    document.body.append(`ANSWER ${JSON.stringify(found)} END`);
})</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    pytest.importorskip("matplotlib")
    return write_report(ROOT / "bench/results/cpu", tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """Opens a page with some options: what the browser wrote to stdout and stderr."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((found for name in names if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium")
    home = str(tmp_path_factory.mktemp("browser"))
    command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--disable-dev-shm-usage", f"--user-data-dir={home}", "--window-size=1100,2000"]

    def run(page, *options):
        done = subprocess.run(
            [*command, *options, page.as_uri()],
            env=os.environ | {"HOME": home},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    return run


def test_everything_loads_and_fits_and_the_console_stays_silent(page, browse):
    asking = page.with_name("asking.html")
    asking.write_text(page.read_text() + QUESTION)
    out, err = browse(asking, "--dump-dom", "--enable-logging=stderr")
    assert "CONSOLE" not in err, err
    answer = json.loads(re.search("ANSWER ({.*}) END", out)[1])
    assert answer.pop("tables") > 10 and answer.pop("images") > 0
    assert answer == {"broken": 0, "sticksOut": 0, "empty": 0}


def test_a_missing_image_would_be_noticed(page, browse, tmp_path):
    asking = tmp_path / "asking.html"
    asking.write_text(page.read_text() + QUESTION)
    out, err = browse(asking, "--dump-dom", "--enable-logging=stderr")
    assert json.loads(re.search("ANSWER ({.*}) END", out)[1])["broken"] > 0


def test_the_picture_is_neither_blank_nor_without_shades(page, browse, tmp_path):
    images = pytest.importorskip("PIL.Image")
    browse(page, f"--screenshot={tmp_path / 'page.png'}")
    picture = images.open(tmp_path / "page.png").convert("RGB")
    assert picture.size == (1100, 2000)
    colours = picture.getcolors(1 << 22)
    drawn = sum(count for count, colour in colours if min(colour) < 250)
    assert 0.02 < drawn / (1100 * 2000) < 0.5
    greens = [g for _, (r, g, b) in colours if g > 150 and g > max(r, b) + 40]
    assert len(greens) > 5
