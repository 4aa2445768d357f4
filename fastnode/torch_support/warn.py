"""Warnings that point at the line of the caller's program, however deep they arise."""

from __future__ import annotations

import sys
import warnings

import torch

#: Packages whose frames are skipped to find the caller's line.
BETWEEN = ("fastnode", "torch")


def warn(message: str) -> None:
    """Issues a UserWarning at the nearest line outside this library and torch."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and _package(frame.f_globals) in BETWEEN:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


class WarnOnce:
    """``warn``, the first time it is called; a solve has one, which its backward pass shares."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = False

    def __call__(self, message: str) -> None:
        # A graph of torch.compile cannot hold a warning; the same call outside of it gives it.
        if not self.done and not torch.compiler.is_compiling():
            self.done = True
            warn(message)


def _package(module: dict) -> str:
    return module.get("__name__", "").partition(".")[0]
