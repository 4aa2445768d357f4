"""Where compiled fields are kept, and what happens without a compiler."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import fastnode
from fastnode.fields import toolchain

pytestmark = pytest.mark.skipif(not fastnode.extension.AVAILABLE, reason="no C++ extension")

SOURCE = 'extern "C" const int fastnode_field = 1;\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTNODE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_source_is_compiled_once(folder):
    first = toolchain.build(SOURCE, [])
    written = first.stat().st_mtime_ns
    assert toolchain.build(SOURCE, []) == first and first.stat().st_mtime_ns == written
    assert toolchain.build(SOURCE, ["-DOTHER"]) != first
    assert folder.stat().st_mode & 0o777 == 0o700
    assert sorted(x.suffix for x in folder.iterdir()) == [".so", ".so"]
    assert toolchain.clear_cache() == 2 and not list(folder.iterdir())


def test_a_folder_that_others_can_write_to_is_refused(folder):
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(fastnode.NotCompilable, match="others can write"):
        toolchain.build(SOURCE, [])


def test_what_the_compiler_says_is_named(folder):
    with pytest.raises(fastnode.NotCompilable, match="expected|unknown|does not name"):
        toolchain.build("this is no C++\n", [])
    assert not list(folder.iterdir())


def test_without_a_compiler_it_is_named(folder, monkeypatch):
    toolchain.find_compiler.cache_clear()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(toolchain.NoCompiler, match="CXX"):
        toolchain.build(SOURCE, [])
    toolchain.find_compiler.cache_clear()


def test_what_cannot_be_loaded_is_named(tmp_path):
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    with pytest.raises(fastnode.NotCompilable, match="cannot be loaded"):
        toolchain.load(broken)


@pytest.mark.slow
def test_eight_processes_compile_the_same_field(folder):
    program = (
        "import torch, fastnode\n"
        "f = torch.nn.Module(); \n"
        "class F(torch.nn.Module):\n"
        "    def __init__(s):\n"
        "        super().__init__(); s.a = torch.nn.Linear(3, 3)\n"
        "    def forward(s, t, y): return torch.tanh(s.a(y))\n"
        "torch.manual_seed(0); f = F(); y = torch.ones(5, 3)\n"
        "c = fastnode.compile_field(f, y)\n"
        "print(fastnode.solve(c, y, torch.tensor([0., 1.]), engine='fused').ys.sum().item())\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(8)
    ]
    printed = {each.communicate(timeout=240)[0] for each in started}
    assert len(printed) == 1 and all(each.returncode == 0 for each in started)
    assert {x.suffix for x in folder.iterdir()} == {".so"}
