"""What operations of a graph become statements with (ir.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from fastnode.errors import NotCompilable
from fastnode.fields.ir import (
    PARAMETERS,
    Assign,
    Buffer,
    Expr,
    Program,
    Sizes,
    Statement,
    Value,
    View,
    level_of,
)

#: Numbers up to which a known tensor becomes a table.
_LARGEST_TABLE = 1 << 20


class Deferred:
    """Several results of an operation, made when they are asked for."""

    def __getitem__(self, index: int) -> Any:
        raise NotImplementedError


class Builder:
    """A program that grows by statements."""

    def __init__(self) -> None:
        self.program = Program()
        self._tables: dict[tuple[float, ...], Buffer] = {}

    def new(self, sizes: Sequence[int], level: int) -> View:
        return View.whole(Buffer(math.prod(sizes), level), sizes)

    def add(self, statement: Statement) -> View:
        self.program.statements.append(statement)
        return statement.out

    def table(self, values: Tensor) -> View:
        numbers = tuple(values.detach().double().reshape(-1).tolist())
        buffer = self._tables.get(numbers)
        if buffer is None:
            buffer = Buffer(len(numbers), PARAMETERS, "table", len(self._tables), numbers)
            self._tables[numbers] = buffer
            self.program.tables.append(buffer)
        return View.whole(buffer, tuple(values.shape))

    def value(self, x: Any) -> Value:
        """As a value of a statement; what is known becomes a table or a number."""
        if isinstance(x, (bool, int, float)):
            return float(x)
        if isinstance(x, Tensor):
            if x.is_complex():
                raise NotCompilable("complex numbers are not supported")
            first = x.reshape(-1)[0] if x.numel() else x.new_zeros(())
            if x.numel() and bool((x == first).all() | x.isnan().all()):
                return float(first)
            if x.numel() > _LARGEST_TABLE:
                raise NotCompilable(f"it makes a constant of {x.numel()} numbers in every call")
            return self.table(x)
        return x

    def view(self, x: Any, sizes: Sequence[int]) -> View:
        """As memory."""
        x = self.value(x)
        if isinstance(x, View):
            return x
        level = level_of(x)
        return self.add(Assign(self.new(sizes, level), x))

    def copied(self, x: Any, sizes: Sequence[int]) -> View:
        """As memory of its own, contiguous."""
        x = self.spread(x, sizes)
        return self.add(Assign(self.new(sizes, level_of(x)), x))

    def contiguous(self, x: Any, sizes: Sequence[int]) -> View:
        x = self.view(x, sizes)
        return x if x.contiguous() else self.copied(x, sizes)

    def spread(self, x: Any, sizes: Sequence[int]) -> Value:
        """Broadcast to ``sizes``."""
        x = self.value(x)
        if isinstance(x, View):
            return x.expand(sizes)
        if isinstance(x, Expr):
            if x.sizes == tuple(sizes):
                return x
            return x.map(lambda leaf: leaf.expand(sizes), tuple(sizes))
        return x

    def expr(self, name: str, args: Sequence[Any], sizes: Sequence[int]) -> Expr:
        return Expr(name, tuple(self.spread(x, sizes) for x in args), tuple(sizes))


def sizes_of(node: Any) -> Sizes:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def elements(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    places: list[tuple[int, ...]] = [()]
    for size in sizes:
        places = [(*each, i) for each in places for i in range(size)]
    return places


def element(view: View, place: Sequence[int]) -> View:
    for i in place:
        view = view.narrow(0, i, 1).drop([0])
    return view
