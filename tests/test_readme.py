"""README and docs: every block runs, every number comes from a committed result."""

from __future__ import annotations

import importlib.util
import pkgutil
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from registered_methods import forgotten_afterwards
from selection import slow

import fastnode
from bench import tables
from bench.reproduce.page import write_page
from bench.reproduce.rows import rows
from bench.results_file import Results
from fastnode.cli.arguments import make_parser

ROOT = Path(__file__).parents[1]
PAGES = tables.pages(ROOT)
RESULTS = Results(ROOT / "bench" / "results" / "cpu")
#: Written whole, by another program.
REPRODUCTION = ROOT / "docs" / "reproduction.md"
BLOCK = re.compile(
    r"^```(?P<language>python|bash)\n(?P<code>.*?)^```$", flags=re.DOTALL | re.MULTILINE
)


def blocks(page: Path) -> list[re.Match[str]]:
    found = list(BLOCK.finditer(page.read_text()))
    assert 2 * len(found) == len(re.findall(r"^```", page.read_text(), flags=re.MULTILINE))
    return found


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize(
    "page", [slow(page) if page.stem in ("cnf", "compiled") else page for page in PAGES], ids=name
)
def test_python_blocks_run_from_top_to_bottom(page):
    names: dict[str, object] = {}
    with forgotten_afterwards():
        for block in blocks(page):
            if block["language"] == "python":
                # Where the page has them, so that triton.jit finds a function's source.
                above = "\n" * page.read_text()[: block.start("code")].count("\n")
                exec(compile(above + block["code"], str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_exist(page):
    for block in blocks(page):
        if block["language"] != "bash":
            continue
        for line in block["code"].replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            words = [w for w in words if not re.fullmatch(r"[A-Z_]+=.*", w)]
            if words:
                check_command(words)


def check_command(words: list[str]) -> None:
    if words[0] == "make":
        dry = subprocess.run(
            ["make", "-n", "-C", str(ROOT), *words[1:]], capture_output=True, text=True
        )
        assert dry.returncode == 0, dry.stderr
    elif words[0] == "fastnode":
        make_parser().parse_args(words[1:])
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]) is not None
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    else:
        assert words[0] == "pip" and words[1] in ("install", "wheel")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_files_that_are_named_exist(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert link.startswith("https://") or (page.parent / link).exists(), link
    for path in re.findall(r"`((?:bench|csrc|docs|examples|fastnode|tests)/[\w./]+)`", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"`(\w+\.jsonl)`", text):
        assert (RESULTS.folder / path).is_file(), path


def test_blocks_and_figures_are_what_the_results_say():
    assert not list(tables.stale(ROOT, RESULTS)), "run: python -m bench.tables"


MEASURED = re.compile(r"\d(?:\.\d+)? ?(?:times (?:faster|slower|less|more)|%|[MG]B|[mun]s)\b")


def test_the_page_of_reproduction_is_what_its_rows_say(tmp_path):
    pytest.importorskip("matplotlib")
    write_page(rows(False), RESULTS.folder / "reproduce.jsonl", tmp_path / REPRODUCTION.name)
    written = (tmp_path / REPRODUCTION.name).read_text()
    assert written == REPRODUCTION.read_text(), "run: python -m bench.reproduce --write --out ..."


@pytest.mark.parametrize("page", [page for page in PAGES if page != REPRODUCTION], ids=name)
def test_measured_numbers_stand_in_blocks_only(page):
    text = tables.BLOCK.sub("", page.read_text())
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)  # formulas
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|:::.*", "", text)
    assert not MEASURED.findall(text)


def test_what_the_reference_names_exists():
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        for path in re.findall(r"^::: ([\w.]+)", page.read_text(), flags=re.MULTILINE):
            assert pkgutil.resolve_name(path) is not None


@pytest.mark.parametrize("module", [fastnode, fastnode.flow, fastnode.nn, fastnode.regularize])
def test_every_public_name_is_in_the_reference(module):
    text = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    words = set(re.findall(r"\w+", text))
    hidden = {"__version__", "flow", "nn", "regularize"}
    assert set(module.__all__) - hidden <= words
