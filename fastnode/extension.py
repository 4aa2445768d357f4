"""Finds and loads the compiled extension ``fastnode._C``.

Two states are valid: the extension was built and loads, or it was not built and the reference
implementation runs. A file that exists and does not load (another torch, another Python, a broken
build) is an error: a silent fallback would hide the broken build and be slow.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

# torch's shared libraries must be loaded before the extension, which links against them.
import torch  # noqa: F401


def native() -> Any:
    """The module ``fastnode._C``; only where AVAILABLE."""
    return _native


def _load() -> tuple[Any, str]:
    if importlib.util.find_spec("fastnode._C") is None:
        return None, "not built: no C++ compiler was found when fastnode was installed"
    try:
        found = importlib.import_module("fastnode._C")
    except ImportError as error:
        raise ImportError(
            "fastnode._C is there but does not load; it was probably built for another torch or "
            f"Python. Rebuild it: pip install --no-build-isolation --force-reinstall . ({error})"
        ) from error
    return found, "built and loaded"


_native, REASON = _load()
#: Whether the C++ kernels are active; REASON says why in words (``fastnode info`` prints it).
AVAILABLE = _native is not None


def empty_cache() -> None:
    """Returns to the system the freed memory that the CPU ops keep for reuse.

    Memory kept and in use together never exceed the peak in use (csrc/ops/result_pool.h); a program
    that has finished its large solves can release it.
    """
    if AVAILABLE:
        native().release_pool()
