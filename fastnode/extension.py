"""Finds and loads the compiled extension ``fastnode._C``.

There are two lawful states: the extension was built and loads, or it was not built and the
reference implementation runs. A file that is there and does not load (another torch, another
Python, a broken build) is an error: silently slow is worse than loudly broken.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

# Its C++ shared libraries must be in the process before ours, which links against them.
import torch  # noqa: F401


def native() -> Any:
    """The module ``fastnode._C``; only where AVAILABLE."""
    return importlib.import_module("fastnode._C")


def _load() -> tuple[bool, str]:
    if importlib.util.find_spec("fastnode._C") is None:
        return False, "not built: no C++ compiler was found when fastnode was installed"
    try:
        native()
    except ImportError as error:
        raise ImportError(
            "fastnode._C is there but does not load; it was probably built for another torch or "
            f"Python. Rebuild it: pip install --no-build-isolation --force-reinstall . ({error})"
        ) from error
    return True, "built and loaded"


#: Whether the C++ kernels are active, and the reason in words (``fastnode info`` prints it).
AVAILABLE, REASON = _load()


def empty_cache() -> None:
    """Returns to the system what the CPU ops keep of their freed results for reuse.

    What is kept plus what is in use never exceeds the most that was in use at once
    (csrc/ops/result_pool.h); a program that is done with large solves can give it back.
    """
    if AVAILABLE:
        native().release_pool()
