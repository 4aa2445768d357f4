"""Callbacks that are attributes of the vector field, as in torchdiffeq."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from fastnode.problem.ivp import NO_CALLBACKS, Callbacks, Problem, Time, time_tensor
from fastnode.torch_support.warn import warn

#: The callbacks of adaptive methods, and of methods with fixed steps.
ADAPTIVE_CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")
FIXED_CALLBACKS = ("callback_step",)


def find_callbacks(
    problem: Problem,
    method: str,
    supported: Collection[str],
    dtype: torch.dtype,
    suffix: str = "",
    unpack: Callable[[Tensor], Any] | None = None,
) -> Callbacks:
    """The attributes ``callback_step``, ``callback_accept_step`` and ``callback_reject_step`` of
    func. Each is called with (t0, y0, dt): time (0-dim, of ``dtype``) and state (in the caller's
    form, or what ``unpack`` makes of it) at the start of the step, and its length, positive in
    either direction of time.

    A warning names those that the method does not support. ``suffix`` is appended to the names of
    the attributes.
    """
    func = problem.field.func
    found = {
        name: getattr(func, name + suffix)
        for name in ADAPTIVE_CALLBACKS
        if hasattr(func, name + suffix)
    }
    for name, callback in found.items():
        if not callable(callback):
            raise TypeError(f"func.{name + suffix} must be callable, got {type(callback).__name__}")
    ignored = [name + suffix for name in found if name not in supported]
    if ignored:
        warn(f"method {method!r} does not support callbacks {', '.join(ignored)}")
    view = problem.layout.unpack if unpack is None else unpack
    wired = {
        name.split("_")[1]: _wired(callback, view, dtype, problem.field.device)
        for name, callback in found.items()
        if name in supported
    }
    return Callbacks(**wired) if wired else NO_CALLBACKS


def _wired(
    callback: Callable[[Tensor, Any, Tensor], Any],
    unpack: Callable[[Tensor], Any],
    dtype: torch.dtype,
    device: torch.device,
) -> Callable[[Time, Tensor, Time], None]:
    def call(t: Time, y: Tensor, h: Time) -> None:
        start, length = (time_tensor(value, dtype, device) for value in (t, abs(h)))
        callback(start, unpack(y), length)

    return call
