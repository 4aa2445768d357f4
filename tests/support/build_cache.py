"""What tests compile, kept in out/tests until a source or the compiler changes."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "out" / "tests"
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*["<]([^">]+)[">]', re.MULTILINE)


def with_headers(sources: Iterable[Path], folders: Sequence[Path]) -> list[Path]:
    """The sources and all that they include from beside themselves or from these folders."""
    found: set[Path] = set()
    left = [path.resolve() for path in sources]
    while left:
        path = left.pop()
        if path in found:
            continue
        found.add(path)
        for name in _INCLUDE.findall(path.read_text()):
            places = (folder / name for folder in (path.parent, *folders))
            left += [place.resolve() for place in places if place.is_file()][:1]
    return sorted(found)


@functools.cache
def version_of(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True)
    return f"{shutil.which(compiler)}\n{done.stdout}"


def built(
    name: str, inputs: Iterable[Path], words: Sequence[str], build: Callable[[Path], None]
) -> Path:
    """The folder that ``build`` filled for these contents of the inputs and these words.

    Inputs are the sources and the file that says how they are compiled; words are what else decides
    on the result, as the compiler's version. One process builds, and others wait for it."""
    digest = hashlib.sha256()
    for word in words:
        digest.update(word.encode() + b"\0")
    for path in inputs:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    place = KEPT / name
    place.mkdir(parents=True, exist_ok=True)
    with open(place / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = place / digest.hexdigest()[:16]
        if not folder.is_dir():
            for old in place.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
            part = place / "part"
            part.mkdir()
            build(part)
            part.rename(folder)
    return folder
