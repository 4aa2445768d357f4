"""The values that a vector field holds, and where it holds them.

Two engines keep what they found out about a field: one a CUDA graph of its kernels, the other the
perceptron in its code. By these values they notice that the field has become another one.
"""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastnode import extension

#: Types that are compared by value.
NUMBERS = (bool, int, float, complex, str, torch.dtype, torch.device, type(None))
#: Packages whose objects and functions are not searched, except for modules.
LIBRARIES = ("torch", "numpy", "triton")
#: Longer collections are compared by identity and length only.
LONG = 256
#: What every module has, and what is no choice of its author.
MODULE_PARTS = frozenset(vars(nn.Module())) - {"training"}

#: (holder, key, value): a dict or list and its key, or None and its length; a cell of a function
#: that closes over a variable; a tensor, and as value its version; an object and an attribute.
Place = tuple[Any, Any, Any]


def changed(places: list[Place]) -> bool:
    """Whether any of them holds something else than it did."""
    if extension.AVAILABLE:
        # The same (csrc/bindings/read_layers.cpp), as every solve of a fused field asks.
        return extension.native().changed(places)
    return not all(_holds(*place) for place in places)


def _holds(holder: Any, key: Any, value: Any) -> bool:
    if isinstance(holder, (dict, list)):
        if key is None:
            return len(holder) == value
        if isinstance(holder, list):
            return key < len(holder) and holder[key] is value
        return holder.get(key) is value
    if isinstance(holder, types.CellType):
        return _filled(holder) and holder.cell_contents is value
    if isinstance(holder, Tensor):
        return holder._version == value
    return getattr(holder, key, None) is value


@dataclass(eq=False)
class HeldValues:
    """The tensors and numbers that a field holds, by their path from it."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    numbers: dict[str, Hashable] = field(default_factory=dict)
    modules: list[nn.Module] = field(default_factory=list)
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
        if id(x) in self._seen or of_a_library(x):
            return
        self._seen.add(id(x))
        if isinstance(x, Tensor):
            self.tensors[path] = x
            return
        if isinstance(x, (list, tuple, dict)) and len(x) > LONG:
            self.numbers[path] = (id(x), len(x))
            return
        if isinstance(x, nn.Module):
            self.modules.append(x)
        own = vars(x) if isinstance(x, nn.Module) else None
        for name, value, holder, key in inside(x):
            if holder is own is not None and str(key).startswith("_"):
                # Memory of a module's own, which it writes to in each call.
                continue
            by_name = isinstance(holder, dict) and holder is not x
            if not by_name or _searched(value):
                self._visit(f"{path}{name}", value)


class HeldPlaces:
    """Where a module or a function holds what it may read: attributes of it, of its class and of
    what is inside of it, global variables and those that functions close over.

    Args:
        module: the module or function.
        without: what is not searched.
        most: places from which on objects that are no modules are not searched.
    """

    def __init__(self, module: Any, without: list[Any], most: int = LONG):
        self.places: list[Place] = []
        self._most = most
        self._seen = {id(x) for x in without}
        self._visit(module)

    def _visit(self, x: Any) -> None:
        if isinstance(x, (*NUMBERS, type, types.ModuleType)) or id(x) in self._seen:
            return
        if of_a_library(x):
            return
        self._seen.add(id(x))
        if isinstance(x, Tensor):
            # Parameters are trained between solves, and no trace reads their values.
            if not isinstance(x, nn.Parameter) and not x.is_inference():
                self.places.append((x, None, x._version))
            return
        if len(self.places) > self._most and not isinstance(x, nn.Module):
            return
        self.places += ((holder, None, len(holder)) for holder in _growing(x))
        if isinstance(x, nn.Module):
            self._visit_class(type(x))
        for _, value, holder, key in inside(x):
            if holder is not None and not isinstance(value, (type, types.ModuleType)):
                self.places.append((holder, key, value))
            self._visit(value)

    def _visit_class(self, kind: type) -> None:
        if id(kind) in self._seen:
            return
        self._seen.add(id(kind))
        bases = kind.__mro__[: kind.__mro__.index(nn.Module)]
        own = (vars(each) for each in bases if not _is_of_a_library(each))
        for name in {name: None for names in own for name in names}:
            value = getattr(kind, name, None)
            # Some descriptors, as those of class methods, give a new object each time.
            if name[:2] != "__" and value is getattr(kind, name, None):
                self.places.append((kind, name, value))
                self._visit(value)


def _growing(x: Any) -> list[Any]:
    """Collections of an object that may come to hold more than they do."""
    if isinstance(x, nn.Module):
        if _is_of_a_library(type(x)):
            return [x._modules] if x._modules else []
        return [x._parameters, x._buffers, x._modules, vars(x)]
    if isinstance(x, (list, dict)):
        return [x]
    return [vars(x)] if _is_plain_object(x) else []


def _is_plain_object(x: Any) -> bool:
    kinds = (list, tuple, dict, functools.partial, types.FunctionType, types.MethodType)
    return hasattr(x, "__dict__") and not isinstance(x, (*kinds, type, types.ModuleType))


def inside(x: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    """What calls of an object may depend on: path, value, and where it is held, its holder being
    None where nothing can be put in the value's place."""
    if isinstance(x, nn.Module):
        for part in (x._parameters, x._buffers, x._modules):
            yield from ((f".{name}", value, part, name) for name, value in part.items())
        own = vars(x)
        yield from ((f".{n}", v, own, n) for n, v in own.items() if n not in MODULE_PARTS)
    elif isinstance(x, functools.partial):
        yield "", x.func, None, None
        yield from ((f"({i})", value, None, None) for i, value in enumerate(x.args))
        yield from ((f"({name})", value, None, None) for name, value in x.keywords.items())
    elif isinstance(x, types.MethodType):
        yield "", x.__self__, None, None
        yield "()", x.__func__, None, None
    elif isinstance(x, types.FunctionType):
        cells = zip(x.__code__.co_freevars, x.__closure__ or (), strict=True)
        for name, cell in cells:
            if _filled(cell):
                yield f".{name}", cell.cell_contents, cell, None
        names = x.__globals__
        for name in _global_names(x.__code__):
            if name in names:
                yield f".{name}", names[name], names, name
    elif isinstance(x, (list, tuple)):
        holder = x if isinstance(x, list) else None
        yield from ((f"[{i}]", value, holder, i) for i, value in enumerate(x))
    elif isinstance(x, dict):
        yield from ((f"[{name!r}]", value, x, name) for name, value in x.items())
    elif _is_plain_object(x):
        own = vars(x)
        yield from ((f".{name}", value, own, name) for name, value in own.items())


@functools.lru_cache(maxsize=256)
def _global_names(code: types.CodeType) -> tuple[str, ...]:
    """The global variables that a function reads, and those that are defined inside of it."""
    found = [each.argval for each in dis.get_instructions(code) if each.opname == "LOAD_GLOBAL"]
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            found += _global_names(each)
    return tuple(dict.fromkeys(found))


def of_a_library(x: Any) -> bool:
    if isinstance(x, (Tensor, nn.Module)):
        return False
    return _is_of_a_library(x if isinstance(x, types.FunctionType) else type(x))


def _is_of_a_library(owner: Any) -> bool:
    return (owner.__module__ or "").partition(".")[0] in LIBRARIES


def _searched(x: Any) -> bool:
    """Whether it may hold values: not a class, a library or a part of one."""
    kinds = (*NUMBERS, Tensor, nn.Module, list, tuple, dict, functools.partial)
    return isinstance(x, (*kinds, types.FunctionType, types.MethodType))


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
