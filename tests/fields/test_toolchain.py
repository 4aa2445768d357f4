"""Where compiled fields are kept, and what happens without a compiler."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
from field_checks import disagreements
from field_zoo import FIELDS
from torch import nn

import fastnode
from fastnode.fields import toolchain
from fastnode.fields.compile import CompiledField

pytestmark = pytest.mark.skipif(not fastnode.extension.AVAILABLE, reason="no C++ extension")

SOURCE = 'extern "C" const int fastnode_field = 1;\n'

#: Compiles a field in a process of its own, solves it and prints the sum.
PROGRAM = """
import torch, fastnode
class F(torch.nn.Module):
    def __init__(s):
        super().__init__(); s.a = torch.nn.Linear(3, 3)
    def forward(s, t, y): return torch.tanh(s.a(y))
torch.manual_seed(0)
f, y = F(), torch.ones(5, 3)
c = fastnode.compile_field(f, y)
print(fastnode.solve(c, y, torch.tensor([0., 1.]), engine='fused').ys.sum().item())
"""


class Decay(nn.Module):
    def forward(self, t, y):
        return -y


def started():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=environment, stdout=subprocess.PIPE, text=True
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTNODE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def compiler(folder, tmp_path, monkeypatch):
    """Puts a script in the compiler's place."""

    def put(body):
        script = tmp_path / "compiler"
        # What it does when it compiles; asked for its version, it answers.
        script.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit 0\n{body}\n')
        script.chmod(0o700)
        monkeypatch.setenv("CXX", str(script))
        toolchain.find_compiler.cache_clear()

    yield put
    toolchain.find_compiler.cache_clear()


def test_a_source_is_compiled_once(folder):
    (first,) = toolchain.build([SOURCE], [])
    written = first.stat().st_mtime_ns
    assert toolchain.build([SOURCE], []) == [first] and first.stat().st_mtime_ns == written
    assert toolchain.build([SOURCE], ["-DOTHER"]) != [first]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert sorted(x.suffix for x in folder.iterdir()) == [".so", ".so"]
    assert toolchain.clear_cache() == 2 and not list(folder.iterdir())


def test_a_folder_that_others_can_write_to_is_refused(folder):
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(fastnode.NotCompilable, match="others can write"):
        toolchain.build([SOURCE], [])


def test_a_read_only_folder_gives_what_it_holds(folder, monkeypatch):
    made = toolchain.build([SOURCE], [])
    # The superuser may write anywhere, so that a mode would change nothing.
    monkeypatch.setattr(toolchain.os, "access", lambda path, mode: False)
    assert toolchain.build([SOURCE], []) == made
    with pytest.raises(fastnode.NotCompilable, match="read-only; name another one"):
        toolchain.build([SOURCE], ["-DOTHER"])


def test_what_the_compiler_says_is_named(folder):
    with pytest.raises(fastnode.NotCompilable, match="expected|unknown|does not name"):
        toolchain.build(["this is no C++\n"], [])
    assert not list(folder.iterdir())


def test_without_a_compiler_it_is_named(folder, monkeypatch):
    toolchain.find_compiler.cache_clear()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(toolchain.NoCompiler, match="CXX names 'no-such-compiler'"):
        toolchain.build([SOURCE], [])
    toolchain.find_compiler.cache_clear()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("echo 'field.cpp:1: error: out of luck' >&2; exit 1", "status 1: .*out of luck"),
        ("exit 3", "status 3"),
        ("kill -SEGV $$", "killed by signal 11"),
        ("exit 0", "made no library"),
    ],
    ids=["fails", "says nothing", "crashes", "makes nothing"],
)
def test_a_broken_compiler_is_an_error_or_a_warning(folder, compiler, body, said):
    compiler(body)
    with pytest.raises(fastnode.NotCompilable, match=said):
        toolchain.build([SOURCE, "// another\n" + SOURCE], [])
    assert not list(folder.iterdir())
    module, y0, ts = Decay(), torch.ones(5, 2), torch.tensor([0.0, 1.0])
    compiled = CompiledField(module, 0.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        solved = [fastnode.odeint(compiled, y0, ts) for _ in range(2)]
    assert len([each for each in caught if "compiler" in str(each.message)]) == 1
    torch.testing.assert_close(solved[1], fastnode.odeint(module, y0, ts))
    with pytest.raises(fastnode.NotCompilable, match=said):
        fastnode.solve(compiled, y0, ts, engine="fused")


def test_a_compiler_that_hangs_is_ended(folder, compiler, monkeypatch):
    compiler("sleep 600 & wait")
    monkeypatch.setattr(toolchain, "LIMIT", 0.2)
    began = time.monotonic()
    with pytest.raises(fastnode.NotCompilable, match="more than 0.2 s"):
        toolchain.build([SOURCE, "// another\n" + SOURCE], [])
    assert time.monotonic() - began < 30 and not list(folder.iterdir())


def test_ctrl_c_ends_a_compiler_that_ignores_it(folder, compiler, tmp_path):
    """The child of a script that hangs holds its output open: it must end as well."""
    compiler(f"trap '' INT; sleep 600 & echo $! >> {tmp_path}/children; wait")
    # A shell starts what runs in the background with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            threading.Thread(target=_interrupt, args=(tmp_path / "children", 2)).start()
            toolchain.build([SOURCE, "// another\n" + SOURCE], [])
    finally:
        signal.signal(signal.SIGINT, before)
    assert not list(folder.iterdir())
    for child in (tmp_path / "children").read_text().split():
        assert _ended(int(child))


def _interrupt(children, count):
    """Sends Ctrl-C to this process once so many compilers hang."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if children.exists() and len(children.read_text().split()) == count:
            break
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)


def _ended(process):
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_arguments_in_cxx_are_the_compilers(folder, monkeypatch):
    found, _ = toolchain.find_compiler()
    monkeypatch.setenv("CXX", f"{found} -DFROM_CXX")
    toolchain.find_compiler.cache_clear()
    assert toolchain.build(["#ifndef FROM_CXX\n#error\n#endif\n" + SOURCE], [])
    toolchain.find_compiler.cache_clear()


def test_what_killed_compilations_left_is_removed(folder):
    toolchain.build([SOURCE], [])
    old, new = f".{32 * 'a'}.x", f".{32 * 'b'}.x"
    # The last one is somebody else's, as that of a home that is named as the cache.
    for name, age in ((old, 7200), (new, 0), (".ssh", 7200)):
        (folder / name).mkdir()
        os.utime(folder / name, (time.time() - age,) * 2)
    toolchain.build([SOURCE], ["-DOTHER"])
    assert sorted(x.name for x in folder.glob(".*")) == [new, ".ssh"]


def test_clearing_leaves_what_is_not_ours(folder):
    toolchain.build([SOURCE], [])
    (folder / "other.so").write_bytes(b"")
    (folder / ".ssh").mkdir()
    (folder / f".{32 * 'a'}.x").mkdir()
    assert toolchain.clear_cache() == 1
    assert sorted(x.name for x in folder.iterdir()) == [".ssh", "other.so"]


def test_what_cannot_be_loaded_is_named(tmp_path):
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    with pytest.raises(fastnode.NotCompilable, match="cannot be loaded"):
        toolchain.load(broken)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("clang++") is None, reason="no clang")
@pytest.mark.parametrize("name", ["attention", "strided", "norms", "max pooling"])
def test_clang_compiles_fields(folder, monkeypatch, name):
    monkeypatch.setenv("CXX", "clang++")
    toolchain.find_compiler.cache_clear()
    build, shape = FIELDS[name]
    torch.manual_seed(0)
    field = build()
    for batch in (3, 21):
        y, weight = torch.randn(2, batch, *shape)
        assert disagreements(field, y, weight, torch.float32, per_sample=False) == {}
    toolchain.find_compiler.cache_clear()


@pytest.mark.slow
def test_eight_processes_compile_the_same_field(folder):
    processes = [started() for _ in range(8)]
    printed = {each.communicate(timeout=240)[0] for each in processes}
    assert len(printed) == 1 and all(each.returncode == 0 for each in processes)
    assert {x.suffix for x in folder.iterdir()} == {".so"}


@pytest.mark.slow
def test_sigkill_leaves_nothing_broken(folder):
    """Killed at moments between the compiler's beginning and its end."""
    rng = random.Random(0)
    for trial in range(6):
        process = started()
        while process.poll() is None and not list(folder.glob(".*/field.cpp")):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1.5))
        process.kill()
        process.communicate()
        for library in folder.glob("*.so"):
            ctypes.c_char.in_dll(ctypes.CDLL(str(library)), "fastnode_field")
            if trial < 5:
                library.unlink()
    printed = []
    for _ in range(2):
        last = started()
        printed.append(float(last.communicate(timeout=240)[0]))
        assert last.returncode == 0
    assert printed[0] == printed[1]
