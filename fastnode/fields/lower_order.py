"""Operations that ask which element is the largest: maxima with their places, sorting, pooling.

A place that depends on the sample is a number like any other here, which is compared with the
numbers of all elements where it is used: that needs no memory access by a sample's own index, which
lanes would have to make one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from fastnode.errors import NotCompilable
from fastnode.fields.build import Builder, Deferred, sizes_of
from fastnode.fields.ir import Assign, Expr, Reduce, Sizes, Value, View, level_of
from fastnode.fields.lower_shapes import moved, padded, put

aten = torch.ops.aten

#: Elements that are compared with each other at most: their number goes in squared.
_MOST_SORTED = 128


def _reduced(build: Builder, x: Value, sizes: Sizes, kind: str) -> View:
    """Over the last dimension, which is dropped."""
    out = build.new((*sizes[:-1], 1), level_of(x))
    return build.add(Reduce(out, x, sizes, kind)).drop([len(sizes) - 1])


def _last(view: View, dim: int) -> View:
    order = [d for d in range(len(view.sizes)) if d != dim]
    return view.permute([*order, dim])


def _back(view: View, dim: int) -> View:
    """From the last dimension to its place."""
    order = list(range(len(view.sizes) - 1))
    order.insert(dim, len(view.sizes) - 1)
    return view.permute(order)


def _numbers(build: Builder, count: int, sizes: Sizes) -> View:
    """0, 1, ... along the last dimension."""
    return build.table(torch.arange(count)).expand(sizes)


class _Extreme(Deferred):
    """The results of max and min along a dimension, made when they are asked for."""

    def __init__(self, build: Builder, node: fx.Node, args: list[Any], kind: str):
        source = sizes_of(node.args[0])
        self.build, self.kind = build, kind
        self.dim: int = args[1] % max(len(source), 1)
        self.keep = bool(args[2]) if len(args) > 2 else False
        x = build.view(args[0], source)
        self.x = _last(x if source else x.unsqueeze(0), self.dim)
        self.found = _reduced(build, self.x, self.x.sizes, kind)
        self.scalar = not source

    def __getitem__(self, index: int) -> View:
        build, sizes = self.build, self.x.sizes
        found = self.found
        if index == 1:
            # The first of equal ones, as torch has it.
            largest = found.unsqueeze(len(sizes) - 1).expand(sizes)
            same = build.expr("eq", [self.x, largest], sizes)
            places = _numbers(build, sizes[-1], sizes)
            where = build.expr("where", [same, places, float(sizes[-1])], sizes)
            found = _reduced(build, where, sizes, "min")
        if self.keep and not self.scalar:
            return _back(found.unsqueeze(len(sizes) - 1), self.dim)
        return found


def _extreme(kind: str) -> Callable[..., Any]:
    def lower(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> _Extreme:
        return _Extreme(build, node, args, kind)

    return lower


def _place(kind: str) -> Callable[..., Any]:
    """argmax and argmin, of all elements where no dimension is named."""

    def lower(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> View:
        if len(args) > 1 and args[1] is not None:
            return _Extreme(build, node, args, kind)[1]
        source = sizes_of(node.args[0])
        x = build.contiguous(args[0], source).reshape((math.prod(source),))
        assert x is not None
        largest = _reduced(build, x, x.sizes, kind).unsqueeze(0).expand(x.sizes)
        same = build.expr("eq", [x, largest], x.sizes)
        count = float(x.numel)
        where = build.expr("where", [same, _numbers(build, x.numel, x.sizes), count], x.sizes)
        found = _reduced(build, where, x.sizes, "min")
        return found.permute([]) if not sizes else View(found.buffer, 0, sizes, (0,) * len(sizes))

    return lower


def _sorted(
    build: Builder, node: fx.Node, x: Any, dim: int, count: int | None, descending: bool
) -> tuple[View, View]:
    """The first ``count`` elements in order, and their places."""
    source = sizes_of(node.args[0])
    if not source:
        raise NotCompilable("sorting of a single number", node)
    dim %= len(source)
    x = _last(build.view(x, source), dim)
    *lead, n = x.sizes
    if n > _MOST_SORTED:
        raise NotCompilable(f"sorting of {n} elements; {_MOST_SORTED} at most", node)
    size = n if count is None else count
    pairs = (*lead, n, n)
    mine = x.unsqueeze(len(lead) + 1).expand(pairs)
    others = x.unsqueeze(len(lead)).expand(pairs)
    # Equal ones stay in their order.
    earlier = torch.arange(n)[None] < torch.arange(n)[:, None]
    tie = build.expr("mul", [build.expr("eq", [others, mine], pairs), earlier.double()], pairs)
    before = build.expr("gt" if descending else "lt", [others, mine], pairs)
    rank = _reduced(build, build.expr("add", [before, tie], pairs), pairs, "sum")
    grid = (*lead, size, n)
    chosen = build.expr(
        "eq",
        [
            rank.unsqueeze(len(lead)).expand(grid),
            build.table(torch.arange(size)).unsqueeze(1).expand(grid),
        ],
        grid,
    )
    values = build.expr("where", [chosen, x.unsqueeze(len(lead)).expand(grid), 0.0], grid)
    places = build.expr("where", [chosen, _numbers(build, n, grid), 0.0], grid)
    first, second = (_reduced(build, each, grid, "sum") for each in (values, places))
    # NaN has no rank: all that is sorted with one is NaN, so that it is not lost.
    lost = _reduced(build, build.expr("isnan", [x], x.sizes), x.sizes, "max")
    lost = lost.unsqueeze(len(lead)).expand(first.sizes)
    first = build.copied(build.expr("where", [lost, math.nan, first], first.sizes), first.sizes)
    return _back(first, dim), _back(second, dim)


def _sort(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> tuple[View, View]:
    dim: Any = node.kwargs.get("dim", args[1] if len(args) > 1 else -1)
    descending = node.kwargs.get("descending", args[2] if len(args) > 2 else False)
    return _sorted(build, node, args[0], dim, None, bool(descending))


def _topk(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> tuple[View, View]:
    dim = args[2] if len(args) > 2 else -1
    largest = args[3] if len(args) > 3 else True
    return _sorted(build, node, args[0], dim, args[1], bool(largest))


def _gather(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    if not isinstance(args[2], (View, Expr)):
        return moved(build, node, args, sizes)
    source = sizes_of(node.args[0])
    index = build.view(args[2], sizes)
    if not sizes:
        return build.view(args[0], source)
    return _gathered_by_place(build, args[0], source, args[1] % len(sizes), index, node)


def _scatter(add: bool) -> Callable[..., Value]:
    def lower(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
        base, dim, index, source = args
        places = sizes_of(node.args[2])
        if not sizes:
            return build.spread(source, sizes)
        dim %= len(sizes)
        if not isinstance(source, (bool, int, float)):
            # Of what is scattered only the part counts that has a place.
            source = build.view(source, sizes_of(node.args[3]))
            for d, size in enumerate(places):
                source = source.narrow(d, 0, size)
        if isinstance(index, (View, Expr)):
            index = build.view(index, places)
            return _scattered_by_place(build, base, sizes, dim, index, source, node, add)
        numbers = torch.arange(math.prod(sizes)).reshape(sizes)
        return put(build, base, source, numbers.gather(dim, index), sizes, node, add)

    return lower


def _gathered_by_place(
    build: Builder, x: Any, source: Sizes, dim: int, index: View, node: fx.Node
) -> View:
    """Elements by places that depend on the sample or the time."""
    x = build.view(x, source)
    for d in range(len(source)):
        if d != dim:
            x = x.narrow(d, 0, index.sizes[d])
    x, index = _last(x, dim), _last(index, dim)
    _few(node, x.sizes[-1], index.sizes[-1])
    at = len(x.sizes) - 1
    grid = (*index.sizes, x.sizes[-1])
    wanted = index.unsqueeze(at + 1).expand(grid)
    chosen = build.expr("eq", [wanted, _numbers(build, grid[-1], grid)], grid)
    value = build.expr("where", [chosen, x.unsqueeze(at).expand(grid), 0.0], grid)
    return _back(_reduced(build, value, grid, "sum"), dim)


def _scattered_by_place(
    build: Builder, base: Any, sizes: Sizes, dim: int, index: View, source: Any, node: fx.Node,
    add: bool,
) -> View:  # fmt: skip
    """``base`` with the elements of ``source`` added or put at such places, which are different
    ones where they are put."""
    if any(n != index.sizes[d] for d, n in enumerate(sizes) if d != dim):
        raise NotCompilable("scatter of a part of a dimension by places of the sample", node)
    x, index = _last(build.view(source, index.sizes), dim), _last(index, dim)
    at, n = len(sizes) - 1, sizes[dim]
    _few(node, n, index.sizes[-1])
    grid = (*index.sizes[:-1], n, index.sizes[-1])
    places = build.table(torch.arange(n)).unsqueeze(1).expand(grid)
    chosen = build.expr("eq", [index.unsqueeze(at).expand(grid), places], grid)
    value = build.expr("where", [chosen, x.unsqueeze(at).expand(grid), 0.0], grid)
    total = _back(_reduced(build, value, grid, "sum"), dim)
    base = build.spread(base, sizes)
    if base == 0.0:
        return total
    if not add:
        taken = _back(_reduced(build, chosen, grid, "sum"), dim)
        base = build.expr("where", [taken, 0.0, base], sizes)
    return build.view(build.expr("add", [base, total], sizes), sizes)


def _few(node: fx.Node, n: int, count: int) -> None:
    if n * count > _MOST_SORTED**2:
        raise NotCompilable(f"{count} places among {n} that depend on the sample", node)


# Pooling.


class _Windows:
    """The windows of a maximum pooling over the last two dimensions: for each place in a window a
    view of what stands there in all of them."""

    def __init__(self, node: fx.Node, source: Sizes, result: Sizes, args: list[Any]):
        def pair(i: int, default: int) -> tuple[int, int]:
            value = args[i] if len(args) > i and args[i] != [] else None
            if value is None:
                return (default, default)
            values = list(value) if isinstance(value, (list, tuple)) else [value]
            return (values[0], values[-1])

        self.kernel = pair(0, 1)
        self.stride = pair(1, 1) if len(args) > 1 and args[1] else self.kernel
        self.padding, self.dilation = pair(2, 0), pair(3, 1)
        self.source, self.result = source, result

    def padded(self) -> list[int]:
        """How far windows reach beyond the tensor, last dimension first, as padding has it."""
        pads: list[int] = []
        for d in (1, 0):
            last = (self.result[d - 2] - 1) * self.stride[d]
            last += (self.kernel[d] - 1) * self.dilation[d] + 1
            before = self.padding[d]
            pads += [before, max(last - before - self.source[d - 2], 0)]
        return pads

    def views(self, x: View) -> list[View]:
        found = []
        for i in range(self.kernel[0]):
            for j in range(self.kernel[1]):
                view = x
                for d, tap in ((0, i), (1, j)):
                    at = len(x.sizes) - 2 + d
                    start, count = tap * self.dilation[d], self.result[d - 2]
                    view = view.narrow(at, start, count, self.stride[d])
                found.append(view)
        return found


class _Pooled(Deferred):
    """Values, and places that only the gradient of the same pooling reads, which finds them
    again."""

    def __init__(self, values: View):
        self.values = values

    def __getitem__(self, index: int) -> Any:
        return self.values if index == 0 else self


def _max_pool(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> _Pooled:
    source = sizes_of(node.args[0])
    result = tuple(node.meta["val"][0].shape)
    windows = _Windows(node, source, result, args[1:])
    views = windows.views(padded(build, args[0], source, windows.padded(), -math.inf))
    return _Pooled(_largest(build, views, result))


def _largest(build: Builder, views: Sequence[View], sizes: Sizes) -> View:
    value: View | Expr = views[0]
    for view in views[1:]:
        value = build.expr("maximum", [value, view], sizes)
    return build.copied(value, sizes)


def _max_pool_backward(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> View:
    g_sizes = sizes_of(node.args[0])
    windows = _Windows(node, sizes, g_sizes, args[2:])
    pads = windows.padded()
    views = windows.views(padded(build, args[1], sizes, pads, -math.inf))
    largest = _largest(build, views, g_sizes)
    g = build.view(args[0], g_sizes)
    level = max(g.level, largest.level)
    full = [*sizes[:-2], sizes[-2] + pads[2] + pads[3], sizes[-1] + pads[0] + pads[1]]
    out = build.add(Assign(build.new(full, level), 0.0))
    # The gradient belongs to the first of the largest elements of a window: it is gone then.
    left = build.copied(g, g_sizes) if g.level == level else build.view(g, g_sizes)
    for view, target in zip(views, windows.views(out), strict=True):
        same = build.expr("eq", [view, largest], g_sizes)
        part = build.copied(build.expr("where", [same, left, 0.0], g_sizes), g_sizes)
        build.add(Assign(target, build.expr("add", [target, part], g_sizes)))
        left = build.copied(build.expr("sub", [left, part], g_sizes), g_sizes)
    inner = out.narrow(len(sizes) - 2, pads[2], sizes[-2])
    return inner.narrow(len(sizes) - 1, pads[0], sizes[-1])


ORDERS: dict[Any, Callable[..., Any]] = {
    aten.gather.default: _gather,
    aten.scatter.src: _scatter(add=False),
    aten.scatter.value: _scatter(add=False),
    aten.scatter_add.default: _scatter(add=True),
    aten.max.dim: _extreme("max"),
    aten.min.dim: _extreme("min"),
    aten.argmax.default: _place("max"),
    aten.argmin.default: _place("min"),
    aten.sort.default: _sort,
    aten.sort.stable: _sort,
    aten.topk.default: _topk,
    aten.max_pool2d_with_indices.default: _max_pool,
    aten.max_pool2d_with_indices_backward.default: _max_pool_backward,
}
