"""Generated fields under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from build_cache import built, version_of, with_headers
from field_zoo import FIELDS

import fastnode
from fastnode.fields import code, toolchain

ROOT = Path(__file__).parents[3]
CSRC = ROOT / "csrc"
DRIVER = Path(__file__).parents[1] / "field_run.cpp"
SOURCES = [CSRC / "fields" / "generated.cpp", DRIVER]
SANITIZE = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not fastnode.extension.AVAILABLE, reason="no C++ extension"),
]

#: Between them products, sums over lanes, convolutions of every kind, gathers and tables.
NAMES = {
    "attention": torch.float32,
    "strided": torch.float64,
    "dilated groups": torch.float32,
    "message passing": torch.float64,
}


class Captured(Exception):
    """Ends a compilation once its sources are known."""


def sources_of(name, batch, monkeypatch):
    """The sources of a field's value and VJP, their flags, and what the field holds."""
    build, shape = FIELDS[name]
    torch.manual_seed(0)
    module = build().to(NAMES[name])
    y0 = torch.randn(batch, *shape, dtype=NAMES[name])

    def captured(sources, flags):
        raise Captured(sources, flags)

    with monkeypatch.context() as patched:
        patched.setattr(code.toolchain, "build", captured)
        with pytest.raises(Captured) as caught:
            fastnode.compile_field(module, y0)
    parameters = [x.numel() for x in module.parameters()]
    # Tensors of integers are part of the code: none of their numbers are read.
    buffers = [x.numel() for x in module.buffers()]
    return *caught.value.args, y0[0].numel(), len(parameters), [*parameters, *buffers]


def compiler():
    found, version = toolchain.find_compiler()
    return shlex.split(found), version


def compiled(arguments):
    done = subprocess.run([*compiler()[0], *map(str, arguments)], capture_output=True, text=True)
    if "cannot find" in done.stderr and "san" in done.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert done.returncode == 0, done.stderr


def driver():
    def build(folder):
        flags = ["-std=c++20", *SANITIZE, f"-I{CSRC}"]
        compiled([*flags, *SOURCES, "-ldl", "-o", folder / "field_run"])

    inputs = [Path(__file__), *with_headers(SOURCES, [CSRC])]
    return built("field_run", inputs, [version_of(compiler()[0][0])], build) / "field_run"


@pytest.mark.parametrize("name", NAMES)
def test_generated_code_is_clean(name, monkeypatch, tmp_path):
    run = driver()
    for batches in ([1, 3], [40]):
        sources, flags, dim, differentiable, held = sources_of(name, batches[0], monkeypatch)
        libraries = []
        for i, source in enumerate(sources):
            text = tmp_path / f"field{i}.cpp"
            text.write_text(source)
            libraries.append(text.with_suffix(".so"))
            plain = [flag for flag in toolchain._FLAGS if flag != "-O3"]
            compiled([*plain, *SANITIZE, *flags, f"-I{CSRC}", text, "-o", libraries[-1]])
        number = "float" if NAMES[name] == torch.float32 else "double"
        for batch in batches:
            arguments = [number, *libraries, dim, differentiable, batch, *held]
            done = subprocess.run(
                [run, *map(str, arguments)],
                capture_output=True,
                text=True,
                env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"},
            )
            assert done.returncode == 0, done.stdout + done.stderr
