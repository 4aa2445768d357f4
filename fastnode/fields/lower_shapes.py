"""Operations that move elements: views, copies, indexing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from fastnode.errors import NotCompilable
from fastnode.fields.build import Builder, sizes_of
from fastnode.fields.ir import Assign, Expr, Gather, Scatter, Sizes, Value, View, level_of
from fastnode.fields.pointwise import same

aten, prims = torch.ops.aten, torch.ops.prims

# Views: without code where a value is memory, or an expression of views.

RESHAPES = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)


def remap(build: Builder, x: Any, function: Callable[[View], View], sizes: Sizes) -> Value:
    x = build.value(x)
    if isinstance(x, float):
        return build.table(torch.tensor(x)).expand(sizes)
    return function(x) if isinstance(x, View) else x.map(function, sizes)


def _reshape(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    x = build.value(args[0])
    if isinstance(x, float):
        return build.table(torch.tensor(x)).expand(sizes)
    source = sizes_of(node.args[0])
    if isinstance(x, Expr):
        if all(leaf.reshape(sizes) is not None for leaf in x.leaves()):
            return x.map(lambda leaf: leaf.reshape(sizes), sizes)  # pyright: ignore
        x = build.view(x, source)
    return x.reshape(sizes) or build.copied(x, source).reshape(sizes)  # pyright: ignore


def _permute(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    order = [d % len(sizes) for d in args[1]]
    return remap(build, args[0], lambda v: v.permute(order), sizes)


def _expand(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    return remap(build, args[0], lambda v: v.expand(sizes), sizes)


def _broadcast_in_dim(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    dims = args[2]

    def function(v: View) -> View:
        strides = [0] * len(sizes)
        for d, stride, size in zip(dims, v.strides, v.sizes, strict=True):
            strides[d] = 0 if size == 1 and sizes[d] != 1 else stride
        return replace(v, sizes=sizes, strides=tuple(strides))

    return remap(build, args[0], function, sizes)


def _unsqueeze(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    return remap(build, args[0], lambda v: v.unsqueeze(args[1] % len(sizes)), sizes)


def _squeeze(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    source = sizes_of(node.args[0])
    dims = range(len(source)) if len(args) < 2 else args[1]
    dims = [dims] if isinstance(dims, int) else dims
    found = [d % len(source) for d in dims if source[d] == 1] if source else []
    return remap(build, args[0], lambda v: v.drop(found), sizes)


def _select(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    source = sizes_of(node.args[0])
    dim = args[1] % len(source)
    at = args[2] % source[dim]
    return remap(build, args[0], lambda v: v.narrow(dim, at, 1).drop([dim]), sizes)


def _range(args: list[Any], size: int) -> tuple[int, int]:
    """Start and step of a slice."""
    start = args[2] if len(args) > 2 and args[2] is not None else 0
    step = args[4] if len(args) > 4 else 1
    return min(max(start + size if start < 0 else start, 0), size), step


def _slice(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    source = sizes_of(node.args[0])
    dim = (args[1] if len(args) > 1 else 0) % len(source)
    start, step = _range(args, source[dim])
    return remap(build, args[0], lambda v: v.narrow(dim, start, sizes[dim], step), sizes)


def _as_strided(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    x = build.contiguous(args[0], sizes_of(node.args[0]))
    offset = args[3] if len(args) > 3 and args[3] else 0
    return View(x.buffer, x.offset + offset, sizes, tuple(args[2]))


def _flip(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    dims = [d % len(sizes) for d in args[1]]

    def function(v: View) -> View:
        for d in dims:
            v = v.narrow(d, v.sizes[d] - 1, v.sizes[d], -1)
        return v

    return remap(build, args[0], function, sizes)


def _on_diagonal(view: View, offset: int, first: int, second: int) -> View:
    """The elements with second index = first index + offset, as a last dimension."""
    first, second = first % len(view.sizes), second % len(view.sizes)
    rows, columns = view.sizes[first], view.sizes[second]
    count = max(min(rows, columns - offset) if offset >= 0 else min(rows + offset, columns), 0)
    start = max(offset, 0) * view.strides[second] + max(-offset, 0) * view.strides[first]
    stride = view.strides[first] + view.strides[second]
    rest = view.narrow(first, 0, 1).narrow(second, 0, 1).drop([first, second])
    sizes, strides = (*rest.sizes, count), (*rest.strides, stride)
    return replace(view, offset=view.offset + start, sizes=sizes, strides=strides)


def _diagonal(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    how = [*args[1:], *(0, 0, 1)[len(args) - 1 :]]
    how[0] = node.kwargs.get("offset", how[0])
    return remap(build, args[0], lambda v: _on_diagonal(v, *how), sizes)


# Copies.


def _cat(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    nodes: Any = node.args[0]
    # An empty tensor of one dimension may be joined to any other.
    pairs = [
        (build.value(x), sizes_of(n))
        for x, n in zip(args[0], nodes, strict=True)
        if sizes_of(n) != (0,)
    ]
    dim = (args[1] if len(args) > 1 else 0) % len(sizes)
    out = build.new(sizes, max(level_of(x) for x, _ in pairs))
    place = 0
    for x, part in pairs:
        target = out.narrow(dim, place, part[dim])
        build.add(Assign(target, build.spread(x, part)))
        place += part[dim]
    return out


def padded(build: Builder, x: Any, source: Sizes, pads: Sequence[int], fill: float) -> View:
    """``pads``: numbers before and after the last dimension, then the one before it; negative ones
    cut off."""
    x = build.view(x, source)
    sizes = list(source)
    starts = [0] * len(source)
    for i in range(len(pads) // 2):
        d = len(source) - 1 - i
        before, after = pads[2 * i], pads[2 * i + 1]
        low, high = max(-before, 0), source[d] - max(-after, 0)
        x = x.narrow(d, low, high - low)
        starts[d], sizes[d] = max(before, 0), source[d] + before + after
    out = build.add(Assign(build.new(sizes, x.level), fill))
    inner = out
    for d, start in enumerate(starts):
        inner = inner.narrow(d, start, x.sizes[d])
    build.add(Assign(inner, x))
    return out


def _pad(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    fill = float(args[2]) if len(args) > 2 else 0.0
    return padded(build, args[0], sizes_of(node.args[0]), args[1], fill)


def _overwritten(build: Builder, base: Any, source: Any, sizes: Sizes, part: Any) -> View:
    """A copy of base in which ``part`` of it is source."""
    base = build.spread(base, sizes)
    level = max(level_of(base), level_of(build.value(source)))
    out = build.add(Assign(build.new(sizes, level), base))
    target = part(out)
    build.add(Assign(target, build.spread(source, target.sizes)))
    return out


def _slice_scatter(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    dim = (args[2] if len(args) > 2 else 0) % len(sizes)
    size = sizes_of(node.args[1])[dim]
    start, step = _range([None, *args[2:]], sizes[dim])
    return _overwritten(
        build, args[0], args[1], sizes, lambda out: out.narrow(dim, start, size, step)
    )


def _select_scatter(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    dim = args[2] % len(sizes)
    at = args[3] % sizes[dim]
    return _overwritten(
        build, args[0], args[1], sizes, lambda out: out.narrow(dim, at, 1).drop([dim])
    )


def _diagonal_scatter(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    how = [*args[2:], *(0, 0, 1)[len(args) - 2 :]]
    return _overwritten(build, args[0], args[1], sizes, lambda out: _on_diagonal(out, *how))


def _slice_backward(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    dim = args[2] % len(sizes)
    size = sizes_of(node.args[0])[dim]
    start, step = _range([None, dim, args[3], args[4], args[5]], sizes[dim])
    return _overwritten(build, 0.0, args[0], sizes, lambda out: out.narrow(dim, start, size, step))


def _select_backward(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    dim = args[2] % len(sizes)
    at = args[3] % sizes[dim]
    return _overwritten(build, 0.0, args[0], sizes, lambda out: out.narrow(dim, at, 1).drop([dim]))


def moved(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    """Any operation that only moves elements: done once with their numbers."""
    source = sizes_of(node.args[0])
    numbers = torch.arange(math.prod(source)).reshape(source)
    target: Any = node.target
    rest = [_checked_index(x, node) for x in args[1:]]
    places = target(numbers, *rest)
    return _gathered(build, args[0], source, places, sizes)


def _gathered(build: Builder, x: Any, source: Sizes, places: Tensor, sizes: Sizes) -> Value:
    x = build.value(x)
    if isinstance(x, float):
        return x
    x = build.contiguous(x, source)
    out = build.new(sizes, x.level)
    return build.add(Gather(out, x, tuple(places.reshape(-1).tolist())))


def _checked_index(x: Any, node: fx.Node) -> Any:
    if isinstance(x, list):
        return [_checked_index(each, node) for each in x]
    if isinstance(x, (View, Expr)):
        raise NotCompilable("an index depends on the state, the time or a parameter", node)
    return x


def _embedding(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    source = sizes_of(node.args[0])
    numbers = torch.arange(math.prod(source)).reshape(source)
    places = numbers[_checked_index(args[1], node)]
    return _gathered(build, args[0], source, places, sizes)


def scattered(
    build: Builder, x: Any, source: Sizes, places: Tensor, sizes: Sizes, scale: float = 1.0
) -> View:
    x = build.contiguous(build.spread(x, source), source)
    out = build.add(Assign(build.new(sizes, x.level), 0.0))
    return build.add(Scatter(out, x, tuple(places.reshape(-1).tolist()), scale))


def _index_put(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    numbers = torch.arange(math.prod(sizes)).reshape(sizes)
    places = torch.ops.aten.index.Tensor(numbers, _checked_index(args[1], node))
    add = bool(len(args) > 3 and args[3])
    return put(build, args[0], args[2], places, sizes, node, add)


def put(
    build: Builder, base: Any, x: Any, places: Tensor, sizes: Sizes, node: fx.Node, add: bool
) -> Value:
    """``base`` with the elements of ``x`` added or put at known places."""
    base = build.spread(base, sizes)
    if not add:
        if len(set(places.reshape(-1).tolist())) != places.numel():
            raise NotCompilable("an assignment by index names an element twice", node)
        taken = torch.zeros(math.prod(sizes))
        taken[places.reshape(-1)] = 1
        if base != 0.0:
            base = build.expr("where", [taken.reshape(sizes), 0.0, base], sizes)
    added = scattered(build, x, tuple(places.shape), places, sizes)
    return added if base == 0.0 else build.expr("add", [base, added], sizes)


def _split(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> tuple[Value, ...]:
    source = sizes_of(node.args[0])
    dim = (args[2] if len(args) > 2 else 0) % len(source)
    parts, place = [], 0
    for size in args[1]:
        start = place
        part = (*source[:dim], size, *source[dim + 1 :])
        parts.append(remap(build, args[0], lambda v, a=start, n=size: v.narrow(dim, a, n), part))
        place += size
    return tuple(parts)


def _added_back(forward: Callable[[Tensor, list[Any]], Tensor]) -> Callable[..., Value]:
    """The gradient of an operation that repeats elements: its gradients, added up for each.

    ``forward``: the operation on numbers, given the arguments of its gradient.
    """

    def lower(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
        numbers = torch.arange(math.prod(sizes)).reshape(sizes)
        # They know no integers.
        places = forward(numbers.double(), args).long()
        return scattered(build, args[0], tuple(places.shape), places, sizes)

    return lower


#: Operations that are views where what they take is memory, or an expression of views.
VIEWS: dict[Any, Callable[..., Any]] = {
    **{target: _reshape for target in RESHAPES},
    aten.permute.default: _permute,
    aten.expand.default: _expand,
    prims.broadcast_in_dim.default: _broadcast_in_dim,
    aten.unsqueeze.default: _unsqueeze,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.squeeze.default: _squeeze,
    aten.select.int: _select,
    aten.slice.Tensor: _slice,
    aten.diagonal.default: _diagonal,
    aten.flip.default: _flip,
    prims.rev.default: _flip,
    aten.detach.default: same,
    aten.lift_fresh_copy.default: same,
}
#: And all others that move elements.
SHAPES: dict[Any, Callable[..., Any]] = {
    **VIEWS,
    aten.split_with_sizes.default: _split,
    aten.as_strided.default: _as_strided,
    aten.cat.default: _cat,
    aten.constant_pad_nd.default: _pad,
    aten.slice_scatter.default: _slice_scatter,
    aten.diagonal_scatter.default: _diagonal_scatter,
    aten.select_scatter.default: _select_scatter,
    aten.slice_backward.default: _slice_backward,
    aten.select_backward.default: _select_backward,
    aten.repeat.default: moved,
    aten.index.Tensor: moved,
    aten.index_select.default: moved,
    aten.embedding.default: _embedding,
    aten.index_put.default: _index_put,
    aten.upsample_nearest1d_backward.default: _added_back(
        lambda x, args: aten.upsample_nearest1d.default(x, args[1], *args[3:])
    ),
    aten.upsample_nearest2d_backward.default: _added_back(
        lambda x, args: aten.upsample_nearest2d.default(x, args[1], *args[3:])
    ),
    aten.replication_pad1d_backward.default: _added_back(
        lambda x, args: aten.replication_pad1d.default(x, args[2])
    ),
    aten.replication_pad2d_backward.default: _added_back(
        lambda x, args: aten.replication_pad2d.default(x, args[2])
    ),
}
