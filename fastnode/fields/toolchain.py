"""Compiles generated sources for this machine, and keeps what was compiled.

Libraries lie in the folder FASTNODE_CACHE_DIR, by default ``fastnode`` in the user's cache folder,
under a hash of all that they were made from: source, headers, flags, compiler and processor. The
folder is private to its user, as what lies there is loaded as code.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from fastnode.errors import NotCompilable

#: Seconds that a compilation may take.
LIMIT = 300
_FLAGS = (
    "-std=c++20", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-w", "-Wno-psabi",
    # Loops over numbers: no errno, no traps, and a zero's sign may change. No reordering of sums,
    # which rounding by large numbers would not survive.
    "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-ffp-contract=fast",
)  # fmt: skip


class NoCompiler(NotCompilable):
    """There is no C++ compiler on this machine, or what CXX names is none."""


def cache_folder() -> Path:
    """Where compiled fields are kept."""
    named = os.environ.get("FASTNODE_CACHE_DIR")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fastnode"


def headers() -> Path:
    """The folder that generated sources include from, in the package or in a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "csrc", package.parent / "csrc"):
        if (folder / "fields" / "runtime.h").exists():
            return folder
    raise NoCompiler("the headers of generated code are not installed")


@functools.cache
def find_compiler() -> tuple[str, str]:
    """The compiler, with the arguments that CXX may give it, and its version.

    Raises:
        NoCompiler: there is none.
    """
    named = os.environ.get("CXX")
    for name in [named] if named else ["c++", "g++", "clang++"]:
        first, *rest = shlex.split(name) or [""]
        found = shutil.which(first)
        if not found:
            continue
        command = [found, *rest]
        try:
            asked = [*command, "--version"]
            run = subprocess.run(asked, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if run.returncode == 0:
            return shlex.join(command), run.stdout
    if named:
        raise NoCompiler(f"CXX names {named!r}, which is no C++ compiler that runs")
    raise NoCompiler("no C++ compiler was found; install one or name it in CXX")


@functools.cache
def _headers_hash() -> str:
    folder, digest = headers(), hashlib.sha256()
    for path in sorted([*folder.glob("fields/*.h"), *folder.glob("mlp/simd/*.h")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    kinds = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.split("\t")[0].strip() in kinds}))


def machine_flags(level: int, best: bool) -> list[str]:
    """For the instruction set of that number (fastnode._C.mlp_instruction_sets)."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return ["-mcpu=native"] if best else []
    if best:
        return ["-march=native", "-mprefer-vector-width=512"]
    return [f"-march={('x86-64', 'x86-64-v3', 'x86-64-v4')[level]}"]


def build(sources: Sequence[str], flags: list[str]) -> list[Path]:
    """The libraries of sources, compiled side by side unless they were before.

    Raises:
        NoCompiler: there is no compiler.
        NotCompilable: the compiler failed, or others can write to the cache folder.
    """
    compiler, version = find_compiler()
    all_flags = [*_FLAGS, *flags]
    folder = _private(cache_folder())
    shared = (_headers_hash(), compiler, version, *all_flags, _processor())
    made = {source: folder / f"{_hash(source, *shared)}.so" for source in sources}
    missing = {source: path for source, path in made.items() if not path.exists()}
    if missing and not os.access(folder, os.W_OK):
        raise NotCompilable(
            f"the cache folder {folder} is read-only; name another one in FASTNODE_CACHE_DIR"
        )
    command = [*shlex.split(compiler), *all_flags, f"-I{headers()}"]
    try:
        with ExitStack() as all_of_them:
            running = [
                all_of_them.enter_context(_compiling(command, source, path))
                for source, path in missing.items()
            ]
            for process, compiled, path in running:
                _finish(process, compiler)
                if not compiled.exists():
                    raise NotCompilable(f"{compiler} made no library and named no error")
                # All or nothing, also where several processes do the same.
                os.replace(compiled, path)
    except OSError as error:
        raise NotCompilable(f"{compiler} cannot be run in {folder}: {error}") from error
    return [made[source] for source in sources]


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:_DIGITS]


_DIGITS = 32
#: What has such a name is ours; a folder that FASTNODE_CACHE_DIR names may hold other things.
_NAME = "[0-9a-f]" * _DIGITS
_SCRATCH = f".{_NAME}.*"


@contextmanager
def _compiling(
    command: list[str], source: str, library: Path
) -> Iterator[tuple[subprocess.Popen[str], Path, Path]]:
    """A compiler at work, what it makes and where that belongs. Whatever ends the block, Ctrl-C
    too, ends the compiler with all that it started."""
    _sweep(library.parent)
    with tempfile.TemporaryDirectory(prefix=f".{library.stem}.", dir=library.parent) as scratch:
        text, made = Path(scratch, "field.cpp"), Path(scratch, "field.so")
        text.write_text(source)
        process = subprocess.Popen(
            [*command, str(text), "-o", str(made)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        with process:
            try:
                yield process, made, library
            finally:
                if process.poll() is None:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)


def _finish(process: subprocess.Popen[str], compiler: str) -> None:
    try:
        _, said = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired as error:
        raise NotCompilable(f"the compiler took more than {LIMIT} s") from error
    if process.returncode < 0:
        raise NotCompilable(f"{compiler} was killed by signal {-process.returncode}")
    if process.returncode != 0:
        lines = said.strip().splitlines()
        first = next((line for line in lines if "error" in line), lines[-1] if lines else "")
        raise NotCompilable(f"{compiler} failed with status {process.returncode}: {first[:300]}")


def _sweep(folder: Path) -> None:
    """Removes what compilations left behind that were killed long ago."""
    for left in folder.glob(_SCRATCH):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > 2 * LIMIT:
                shutil.rmtree(left, ignore_errors=True)


def _private(folder: Path) -> Path:
    """The folder, made if need be, once nobody else can write to it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise NotCompilable(
            f"the cache folder {folder} cannot be made: {error.strerror}"
        ) from error
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NotCompilable(
            f"others can write to the cache folder {folder}, from which code is loaded; make it "
            "private (chmod 700) or name another one in FASTNODE_CACHE_DIR"
        )
    return folder


def load(library: Path) -> int:
    """The address of its ``fastnode_field``; the library stays loaded."""
    try:
        handle = ctypes.CDLL(str(library))
        address = ctypes.addressof(ctypes.c_char.in_dll(handle, "fastnode_field"))
    except (OSError, ValueError) as error:
        raise NotCompilable(f"{library} cannot be loaded: {error}") from error
    _LOADED.append(handle)
    return address


_LOADED: list[ctypes.CDLL] = []


def libraries() -> list[Path]:
    """Those in the cache folder."""
    return sorted(cache_folder().glob(f"{_NAME}.so"))


def clear_cache() -> int:
    """Removes all libraries; returns how many there were."""
    found = libraries()
    for each in found:
        each.unlink(missing_ok=True)
    for left in cache_folder().glob(_SCRATCH):
        shutil.rmtree(left, ignore_errors=True)
    return len(found)
