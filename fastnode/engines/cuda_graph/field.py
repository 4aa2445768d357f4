"""Whether a CUDA graph may capture a vector field.

A CUDA graph repeats kernels on fixed memory. It sees new contents of the tensors that a field
holds; it does not see another tensor in their place, another number, or anything Python does.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastnode.engines.held_values import HeldValues
from fastnode.torch_support.recompute import random_state


class CannotRun(ValueError):
    """The engine cannot run a solve."""


class CannotCapture(CannotRun):
    """Nor any other of this field as it is."""


def cannot_capture(reason: str) -> CannotCapture:
    return CannotCapture(f"engine 'graph' cannot capture func: {reason}")


def _version(x: Tensor) -> int:
    """Its version counter; inference tensors have none."""
    return 0 if x.is_inference() else x._version


def weak_reference(func: Any, forget: Callable[[Any], None]) -> Callable[[], Any]:
    """A weak reference to func; a strong one if it cannot be weakly referenced."""
    try:
        if isinstance(func, types.MethodType):
            return weakref.WeakMethod(func, forget)
        return weakref.ref(func, forget)
    except TypeError:
        return lambda: func


def check_pure(
    evaluate: Callable[[], Tensor], func: Any, y: Tensor, forbidding_waits: Callable[[], Any]
) -> bool:
    """Calls a field a few times and raises ValueError if a CUDA graph cannot capture it.

    Args:
        evaluate: calls func at y; returns dy/dt.
        forbidding_waits: a context in which whatever waits for the device raises RuntimeError.

    Returns:
        Whether two calls returned the same memory, which must then be copied.
    """
    for path, x in HeldValues.of(func).tensors.items():
        if x.device != y.device:
            raise cannot_capture(
                f"it holds {path} on {x.device}, and the state is on {y.device}; a graph would "
                "keep its value of today: move it"
            )
    # The first call may initialise libraries and compile kernels, and synchronise for that.
    evaluate()
    held = HeldValues.of(func)
    versions = {path: _version(x) for path, x in held.tensors.items()}
    version, before = y._version, random_state(y.device)
    try:
        with forbidding_waits():
            first, second = evaluate(), evaluate()
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        raise cannot_capture(
            "it waits for the device, as .item(), .cpu(), copies from the host and tests of a "
            f"tensor's value do ({error})"
        ) from error
    if not all(map(torch.equal, before, random_state(y.device))):
        raise cannot_capture(
            "it draws random numbers (dropout?), which would be the same at every step"
        )
    if y._version != version:
        raise cannot_capture("it changes the state that it is given")
    for path, x in held.tensors.items():
        if _version(x) != versions[path]:
            raise cannot_capture(f"it changes {path}, a tensor that it holds")
    for path, value in HeldValues.of(func).numbers.items():
        if held.numbers.get(path, value) != value:
            raise cannot_capture(f"it changes {path}, which a graph does not know of")
    return first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
