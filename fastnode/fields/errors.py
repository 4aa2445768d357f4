"""Why a field cannot be compiled."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from fastnode.errors import NotCompilable

__all__ = ["NotCompilable", "find_line"]


def find_line(operation: Any, call: Callable[[], Any]) -> str:
    """Where ``call`` calls an operation: ``" (file:line)"``, or "" if it never does."""
    from torch.utils._python_dispatch import TorchDispatchMode

    wanted = getattr(operation, "overloadpacket", operation)
    found: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            if not found and getattr(func, "overloadpacket", None) is wanted:
                found.append(_caller())
            return func(*args, **(kwargs or {}))

    try:
        with torch.no_grad(), Watch():
            call()
    except Exception:
        return ""
    return f" ({found[0]})" if found and found[0] else ""


def _caller() -> str:
    """The line outside of this library and torch that is being run."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        package = (frame.f_globals.get("__name__") or "").partition(".")[0]
        if package not in ("torch", "fastnode"):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
