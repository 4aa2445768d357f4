"""What a field is compiled from: statements over strided views, with the batch left out.

A value stands on one of three levels: it depends on parameters alone (computed once a solve), on
the time as well (once a time), or on the sample. Which code is printed from the statements is up to
an emitter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

PARAMETERS, TIME, SAMPLE = range(3)

Sizes: TypeAlias = tuple[int, ...]

#: Operations that return a truth, 1 or 0.
COMPARISONS = ("eq", "ge", "gt", "le", "lt", "ne")


def strides_of(sizes: Sequence[int]) -> Sizes:
    """Of a contiguous tensor."""
    strides, count = [], 1
    for size in reversed(sizes):
        strides.append(count)
        count *= size
    return tuple(reversed(strides))


@dataclass(eq=False)
class Buffer:
    """Memory of ``size`` numbers, on SAMPLE's level of that many for each sample.

    ``place``: "t", "y", "g" (the cotangent), "input" (a tensor that the field holds), "table"
    (constants), "out" (a result), "sum" (the gradient of an input, added up over all samples), or
    "local".
    """

    size: int
    level: int
    place: str = "local"
    index: int = 0
    #: Of a table.
    values: tuple[float, ...] = ()
    #: Of a local one among those of its level, once that is planned.
    offset: int = 0


@dataclass(frozen=True)
class View:
    """The numbers at offset + sum_d i_d strides_d of a buffer."""

    buffer: Buffer
    offset: int
    sizes: Sizes
    strides: Sizes

    @classmethod
    def whole(cls, buffer: Buffer, sizes: Sequence[int]) -> View:
        return cls(buffer, 0, tuple(sizes), strides_of(sizes))

    @property
    def level(self) -> int:
        return self.buffer.level

    @property
    def numel(self) -> int:
        return math.prod(self.sizes)

    def contiguous(self) -> bool:
        expected = 1
        for size, stride in zip(reversed(self.sizes), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True

    def permute(self, order: Sequence[int]) -> View:
        return replace(
            self,
            sizes=tuple(self.sizes[d] for d in order),
            strides=tuple(self.strides[d] for d in order),
        )

    def expand(self, sizes: Sequence[int]) -> View:
        new = len(sizes) - len(self.sizes)
        strides = [0] * new
        for have, want, stride in zip(self.sizes, sizes[new:], self.strides, strict=True):
            assert have == want or have == 1, (self.sizes, sizes)
            strides.append(0 if have == 1 and want != 1 else stride)
        return replace(self, sizes=tuple(sizes), strides=tuple(strides))

    def narrow(self, dim: int, start: int, size: int, step: int = 1) -> View:
        sizes, strides = list(self.sizes), list(self.strides)
        offset = self.offset + start * strides[dim]
        sizes[dim], strides[dim] = size, strides[dim] * step
        return replace(self, offset=offset, sizes=tuple(sizes), strides=tuple(strides))

    def reshape(self, sizes: Sequence[int]) -> View | None:
        """None where that needs a copy."""
        if self.contiguous():
            return replace(self, sizes=tuple(sizes), strides=strides_of(sizes))
        # Groups of dimensions that hold the same number of elements, each contiguous in itself.
        old = [(n, s) for n, s in zip(self.sizes, self.strides, strict=True) if n != 1]
        strides: list[int] = []
        place = 0
        for wanted in _groups([n for n, _ in old], list(sizes)):
            have, want = wanted
            group = old[place : place + len(have)]
            place += len(have)
            for (_, outer), (n, inner) in zip(group, group[1:], strict=False):
                if outer != n * inner:
                    return None
            last = group[-1][1] if group else 0
            strides += [last * s for s in strides_of(want)]
        return replace(self, sizes=tuple(sizes), strides=tuple(strides))

    def drop(self, dims: Sequence[int]) -> View:
        """Without dimensions of size 1."""
        keep = [d for d in range(len(self.sizes)) if d not in dims]
        return self.permute(keep)

    def unsqueeze(self, dim: int) -> View:
        return replace(
            self,
            sizes=(*self.sizes[:dim], 1, *self.sizes[dim:]),
            strides=(*self.strides[:dim], 0, *self.strides[dim:]),
        )


def _groups(old: list[int], new: list[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Shortest parts of both, in order, of the same product; ones stand with what follows."""
    i = j = 0
    while i < len(old) or j < len(new):
        have: list[int] = []
        want: list[int] = []
        count_old = count_new = 1
        while True:
            if j < len(new) and count_new <= count_old and (count_new < count_old or not want):
                count_new *= new[j]
                want.append(new[j])
                j += 1
            elif i < len(old) and count_old < count_new:
                count_old *= old[i]
                have.append(old[i])
                i += 1
            elif count_old == count_new:
                break
            else:
                break
        while j < len(new) and new[j] == 1:
            want.append(1)
            j += 1
        if not have and not want:
            return
        yield have, want


@dataclass(frozen=True, eq=False)
class Expr:
    """An operation on each element; arguments have its sizes, or are numbers."""

    name: str
    args: tuple[Value, ...]
    sizes: Sizes

    @property
    def level(self) -> int:
        return max((level_of(x) for x in self.args), default=PARAMETERS)

    def map(self, function: Callable[[View], View], sizes: Sizes) -> Expr:
        """With other views in place of its leaves."""

        def walk(x: Value) -> Value:
            if isinstance(x, View):
                return function(x)
            return x.map(function, sizes) if isinstance(x, Expr) else x

        return Expr(self.name, tuple(walk(x) for x in self.args), sizes)

    def leaves(self) -> Iterator[View]:
        for x in self.args:
            if isinstance(x, View):
                yield x
            elif isinstance(x, Expr):
                yield from x.leaves()

    def depth(self) -> int:
        """Operations in it."""
        return 1 + sum(x.depth() for x in self.args if isinstance(x, Expr))


Value: TypeAlias = "View | Expr | float"


def level_of(x: Value) -> int:
    return x.level if isinstance(x, (View, Expr)) else PARAMETERS


def views_in(x: Value) -> list[View]:
    if isinstance(x, View):
        return [x]
    return list(x.leaves()) if isinstance(x, Expr) else []


@dataclass(eq=False)
class Statement:
    """One step; it belongs to the level of what it writes."""

    out: View

    @property
    def level(self) -> int:
        return self.out.level

    def reads(self) -> list[View]:
        raise NotImplementedError


@dataclass(eq=False)
class Assign(Statement):
    """out = value, element by element."""

    value: Value

    def reads(self) -> list[View]:
        return views_in(self.value)


@dataclass(eq=False)
class Reduce(Statement):
    """out = scale * the sum, or the largest or smallest, of value over dimensions in which out has
    size 1."""

    value: Value
    sizes: Sizes
    kind: str = "sum"
    scale: float = 1.0

    def reads(self) -> list[View]:
        return views_in(self.value)


@dataclass(eq=False)
class Product(Statement):
    """out[m, n] = bias[m, n] + sum_k a[m, k] b[k, n]."""

    a: View
    b: View
    bias: View | None = None

    def reads(self) -> list[View]:
        return [self.a, self.b, *([self.bias] if self.bias else [])]


@dataclass(eq=False)
class Outer(Statement):
    """out[m, n] += sum over k and samples of a[m, k] b[k, n]."""

    a: View
    b: View

    @property
    def level(self) -> int:
        return SAMPLE

    def reads(self) -> list[View]:
        return [self.a, self.b]


@dataclass(eq=False)
class Accumulate(Statement):
    """out += the sum of value over samples."""

    value: Value

    @property
    def level(self) -> int:
        return SAMPLE

    def reads(self) -> list[View]:
        return views_in(self.value)


@dataclass(frozen=True)
class Convolution:
    """Sizes of a convolution of two dimensions: x [groups * in, *image] to [groups * out, *result]
    with weights [groups * out, in, *kernel]."""

    groups: int
    inputs: int
    outputs: int
    image: tuple[int, int]
    result: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


@dataclass(eq=False)
class Convolve(Statement):
    """A convolution ("forward"), its transpose, which is the gradient of its input ("input"), or,
    added up over samples, the gradient of its weights ("weight").

    ``x`` is contiguous: the image, for "input" the gradient of the result. ``other``: the weights,
    or for "weight" the gradient of the result. ``packed``: whether the weights are those of
    ``arrange``.
    """

    kind: str
    shape: Convolution
    x: View
    other: View
    bias: View | None = None
    packed: bool = False

    @property
    def level(self) -> int:
        return SAMPLE if self.kind == "weight" else self.out.level

    def reads(self) -> list[View]:
        return [self.x, self.other, *([self.bias] if self.bias else [])]


@dataclass(eq=False)
class Gather(Statement):
    """out[i] = source[places[i]], numbered in the order of contiguous tensors."""

    source: View
    places: tuple[int, ...]

    def reads(self) -> list[View]:
        return [self.source]


@dataclass(eq=False)
class Scatter(Statement):
    """out[places[i]] += source[i], out being zero before."""

    source: View
    places: tuple[int, ...]
    scale: float = 1.0

    def reads(self) -> list[View]:
        return [self.source]


@dataclass(eq=False)
class Cumulate(Statement):
    """Sums of value along a dimension up to each element."""

    value: View
    dim: int

    def reads(self) -> list[View]:
        return [self.value]


@dataclass(eq=False)
class Program:
    """Statements in order, results, and tables."""

    statements: list[Statement] = field(default_factory=list)
    tables: list[Buffer] = field(default_factory=list)

    def at(self, level: int) -> list[Statement]:
        return [each for each in self.statements if each.level == level]
