"""The values that a vector field holds, and whether a CUDA graph may capture it.

A CUDA graph repeats kernels on fixed memory. It sees new contents of the tensors that a field
holds; it does not see another tensor in their place, another number, or anything Python does.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastnode.torch_support.recompute import random_state

#: Types that are compared by value.
NUMBERS = (bool, int, float, complex, str, torch.dtype, torch.device, type(None))
#: Packages whose objects and functions are not searched, except for modules.
LIBRARIES = ("torch", "numpy", "triton")
#: Longer collections are compared by identity and length only.
LONG = 256


def cannot_capture(reason: str) -> ValueError:
    return ValueError(f"engine 'graph' cannot capture func: {reason}")


@dataclass(eq=False)
class HeldValues:
    """The tensors and numbers that a field holds, by their path from it."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    numbers: dict[str, Hashable] = field(default_factory=dict)
    _seen: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, func: Any) -> HeldValues:
        held = cls()
        held._visit("func", func)
        return held

    def key(self) -> Hashable:
        """Equal as long as a CUDA graph captured with these values may be used."""
        places = tuple(
            (x.data_ptr(), x.shape, x.stride(), x.dtype, x.device) for x in self.tensors.values()
        )
        return places, tuple(self.numbers.items())

    def _visit(self, path: str, x: Any) -> None:
        if isinstance(x, NUMBERS):
            self.numbers[path] = x
            return
        if id(x) in self._seen or _of_a_library(x):
            return
        self._seen.add(id(x))
        if isinstance(x, Tensor):
            self.tensors[path] = x
            return
        if isinstance(x, (list, tuple, dict)) and len(x) > LONG:
            self.numbers[path] = (id(x), len(x))
            return
        for name, inner in _inside(x):
            self._visit(f"{path}{name}", inner)


def _inside(x: Any) -> Iterator[tuple[str, Any]]:
    """The paths and objects that calls of an object may depend on."""
    if isinstance(x, nn.Module):
        for part in (x._parameters, x._buffers, x._modules):
            yield from ((f".{name}", value) for name, value in part.items())
        yield from ((f".{n}", v) for n, v in vars(x).items() if n[0] != "_" and _ours(v))
    elif isinstance(x, functools.partial):
        yield "", x.func
        yield from ((f"({i})", value) for i, value in enumerate(x.args))
        yield from ((f"({name})", value) for name, value in x.keywords.items())
    elif isinstance(x, types.MethodType):
        yield "", x.__self__
        yield "()", x.__func__
    elif isinstance(x, types.FunctionType):
        cells = zip(x.__code__.co_freevars, x.__closure__ or (), strict=True)
        yield from ((f".{name}", cell.cell_contents) for name, cell in cells if _filled(cell))
        names = (n for n in x.__code__.co_names if n in x.__globals__)
        yield from ((f".{n}", v) for n in names if _ours(v := x.__globals__[n]))
    elif isinstance(x, (list, tuple)):
        yield from ((f"[{i}]", value) for i, value in enumerate(x))
    elif isinstance(x, dict):
        yield from ((f"[{name!r}]", value) for name, value in x.items())
    elif hasattr(x, "__dict__") and not isinstance(x, (type, types.ModuleType)):
        yield from ((f".{name}", value) for name, value in vars(x).items() if _ours(value))


def _of_a_library(x: Any) -> bool:
    if isinstance(x, (Tensor, nn.Module)):
        return False
    owner = x if isinstance(x, types.FunctionType) else type(x)
    return (owner.__module__ or "").partition(".")[0] in LIBRARIES


def _ours(x: Any) -> bool:
    """Whether it may hold values: not a class, a library or a part of one."""
    kinds = (*NUMBERS, Tensor, nn.Module, list, tuple, dict, functools.partial)
    return isinstance(x, (*kinds, types.FunctionType, types.MethodType))


def _version(x: Tensor) -> int:
    """Its version counter; inference tensors have none."""
    return 0 if x.is_inference() else x._version


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


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
