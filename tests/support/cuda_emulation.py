"""The CUDA kernels compiled for the CPU, threads as fibers (csrc/emulation/cuda_runtime.h)."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from build_cache import built, version_of, with_headers
from torch import Tensor

CSRC = Path(__file__).parents[2] / "csrc"
HERE = Path(__file__).parents[1] / "csrc" / "emulation"
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
_LAUNCH = re.compile(
    r"(?P<kernel>\b\w+_kernel(?:<(?:[^<>;{}]|<[^<>;{}]*>)*>)?)[\s\\]*"
    r"<<<(?P<shape>.*?)>>>(?=[\s\\]*\()",
    re.DOTALL,
)


def plain_cpp(source: str) -> str:
    """A .cu source with its launches as calls."""
    return _LAUNCH.sub(
        r"emulation::launch([&](auto... x) { \g<kernel>(x...); }, \g<shape>)", source
    )


@functools.cache
def library(
    glue: str = "kernels.cpp",
    sources_of: tuple[str, ...] = ("kernels/rk/*_cuda.cu", "step_control/*_cuda.cu"),
) -> ctypes.CDLL:
    """`glue`, a file of functions for tests, with the sources of csrc that it calls."""
    compiler = COMPILER
    assert compiler is not None
    sources = [path for pattern in sources_of for path in sorted(CSRC.glob(pattern))]
    flags = ["-std=c++20", "-O1", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    flags += ["-Wno-unknown-pragmas", "-Wno-unused-parameter"]

    def run(*arguments: Any) -> None:
        result = subprocess.run([compiler, *map(str, arguments)], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr

    def build(folder: Path) -> None:
        def compiled(source: Path) -> Path:
            place, made = folder / f"{source.stem}.cpp", folder / f"{source.stem}.o"
            text = source.read_text()
            place.write_text(plain_cpp(text) if source.suffix == ".cu" else text)
            run(*flags, f"-I{HERE}", f"-I{CSRC}", "-c", place, "-o", made)
            return made

        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(compiled, [HERE / glue, *sources]))
        run("-shared", *objects, "-o", folder / "kernels.so")
        for each in objects:
            each.unlink()

    inputs = [Path(__file__), *with_headers([HERE / glue, *sources], [HERE, CSRC])]
    name = f"emulation-{glue.partition('.')[0]}"
    return ctypes.CDLL(str(built(name, inputs, [version_of(compiler)], build) / "kernels.so"))


def pointer(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def numbers(values: Any) -> Any:
    flat = torch.as_tensor(values, dtype=torch.float64).flatten().tolist()
    return (ctypes.c_double * len(flat))(*flat)


def call(name: str, like: Tensor, *arguments: Any) -> None:
    """Calls a function of kernels.cpp for the dtype of `like`: tensors by their memory, lists of
    tensors by theirs, int as int64, lists of numbers and float as double."""
    converted: list[Any] = [DTYPES.index(like.dtype)]
    for each in arguments:
        if each is None or isinstance(each, Tensor):
            converted.append(pointer(each))
        elif isinstance(each, list) and each and isinstance(each[0], Tensor):
            converted.append((ctypes.c_void_p * len(each))(*(x.data_ptr() for x in each)))
        elif isinstance(each, list):
            converted.append(numbers(each))
        elif isinstance(each, float):
            converted.append(ctypes.c_double(each))
        else:
            converted.append(ctypes.c_int64(each))
    assert getattr(library(), name)(*converted) == 0


class Guarded:
    """Memory filled with NaN around and in it; what is around must stay."""

    def __init__(self, shape: Any, dtype: torch.dtype, offset: int = 0):
        count = torch.Size(shape).numel()
        self.buffer = torch.full((count + 64,), torch.nan, dtype=dtype)
        self.inside = self.buffer[16 + offset : 16 + offset + count].view(shape)
        self.before, self.after = self.buffer[: 16 + offset], self.buffer[16 + offset + count :]

    def checked(self) -> Tensor:
        assert self.before.isnan().all() and self.after.isnan().all()
        return self.inside
