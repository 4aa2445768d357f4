"""What `fastnode info` prints: versions, and which implementations are active and why."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform

import torch

import fastnode
from fastnode import extension


def describe() -> dict[str, str]:
    """Names and values, in the order in which they are printed."""
    build = _build()
    return {
        "fastnode": fastnode.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "compiler": build.pop("compiler", "none"),
        "threads": str(torch.get_num_threads()),
        "cuda device": _cuda_device(),
        "data folder": os.environ.get("FASTNODE_DATA") or "none (FASTNODE_DATA is not set)",
        "C++ kernels": _cpp(build),
        "compiled fields": _compiled_fields(),
        "CUDA kernels": _cuda(build),
        "Triton kernels": _triton(),
        "reference": "active (plain PyTorch), wherever no kernel above is",
    }


def _build() -> dict[str, str]:
    if not extension.AVAILABLE:
        return {}
    from fastnode import _C  # pyright: ignore[reportAttributeAccessIssue]

    return _C.build_info()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cuda_device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return "none" if torch.version.cuda else "none (this torch was built without CUDA)"


def _cpp(build: dict[str, str]) -> str:
    if not extension.AVAILABLE:
        return f"inactive ({extension.REASON})"
    return f"active on the CPU ({extension.REASON}; {build.get('instruction set', 'baseline')})"


def _compiled_fields() -> str:
    from fastnode.fields import toolchain

    try:
        compiler, version = toolchain.find_compiler()
        toolchain.headers()
    except ValueError as error:
        return f"inactive ({error})"
    if not extension.AVAILABLE:
        return "inactive (the extension, which runs them, is not built)"
    return f"active: {version.splitlines()[0]} ({compiler}), kept in {toolchain.cache_folder()}"


def _cuda(build: dict[str, str]) -> str:
    if build.get("cuda") != "yes":
        return (
            "inactive (the extension was built without CUDA)" if build else "inactive (not built)"
        )
    if not torch.cuda.is_available():
        return "inactive (no CUDA device)"
    return "active on CUDA"


def _triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return "inactive (triton is not installed)"
    if not extension.AVAILABLE:
        return "inactive (the extension, which defines the ops, is not built)"
    if not torch.cuda.is_available():
        return "inactive (no CUDA device)"
    return "active on CUDA"
