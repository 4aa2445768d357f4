"""From a graph of PyTorch's core operations to statements (ir.py)."""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from fastnode.errors import NotCompilable
from fastnode.fields.ir import (
    PARAMETERS,
    SAMPLE,
    Accumulate,
    Assign,
    Buffer,
    Convolution,
    Convolve,
    Cumulate,
    Expr,
    Gather,
    Outer,
    Product,
    Program,
    Reduce,
    Scatter,
    Sizes,
    Statement,
    Value,
    View,
    level_of,
    strides_of,
)
from fastnode.fields.pointwise import POINTWISE

aten, prims = torch.ops.aten, torch.ops.prims

#: What a node stands for: a value, a tensor whose numbers are known now, or several of these.
Meaning: TypeAlias = "Value | Tensor | tuple[Any, ...] | None"

#: Numbers up to which a known tensor that is the same everywhere is one number.
_LARGEST_TABLE = 1 << 20


class Lowering:
    """One graph, node by node.

    Args:
        graph: made by ``trace``.
        arguments: what its placeholders stand for, in order: views, or tensors whose values are
            fixed (integers).
        gradients: for each output of the graph, where its sum over samples is to be added, or None
            for outputs that are returned.
    """

    def __init__(
        self, graph: fx.GraphModule, arguments: Sequence[View | Tensor], gradients: Sequence[Any]
    ):
        self.module, self.graph = graph, graph.graph
        self.program = Program()
        self.values: dict[fx.Node, Meaning] = {}
        self._tables: dict[tuple[float, ...], Buffer] = {}
        self._sinks: dict[fx.Node, list[View]] = defaultdict(list)
        #: Nodes of which only the sum over samples is needed, not the value.
        self._sunk: set[fx.Node] = set()
        outputs = next(n for n in self.graph.nodes if n.op == "output").args[0]
        self.outputs: list[Any] = list(outputs)
        for node, sink in zip(self.outputs, gradients, strict=True):
            if isinstance(node, fx.Node) and sink is not None:
                self._sink(node, sink)
        given = iter(arguments)
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = next(given)
            elif node.op == "get_attr":
                self.values[node] = self._constant(node)
            elif node.op == "call_function":
                self.values[node] = self._lower(node)
        self._gradients = gradients

    def results(self) -> list[Meaning]:
        """The outputs that are returned; None where there is none."""
        return [
            self.values[node] if isinstance(node, fx.Node) and sink is None else None
            for node, sink in zip(self.outputs, self._gradients, strict=True)
        ]

    def has_output(self, index: int) -> bool:
        return isinstance(self.outputs[index], fx.Node)

    def _constant(self, node: fx.Node) -> Tensor:
        """A tensor that is neither parameter nor buffer: one that forward makes of numbers."""
        value = getattr(self.module, str(node.target))
        made = all(user.target is aten.lift_fresh_copy.default for user in node.users)
        if value.is_floating_point() and value.dim() and not made:
            raise NotCompilable(
                f"it reads a tensor of shape {tuple(value.shape)} that is neither a parameter nor "
                "a buffer, whose changes would not be seen; use register_buffer",
                next(iter(node.users), node),
            )
        return value.detach()

    # Statements.

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
            if x.numel() and bool((x == first).all() | first.isnan()):
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

    # Nodes.

    def _sink(self, node: fx.Node, out: View) -> None:
        """Marks that the sum of ``node`` over samples is to be added to ``out``."""
        if node.op != "call_function" or len(node.users) != 1:
            self._sinks[node].append(out)
            return
        target, args = node.target, node.args
        source = args[0] if args else None
        if isinstance(source, fx.Node):
            sizes = _sizes(source)
            if target is aten.permute.default:
                order = [d % len(sizes) for d in args[1]]  # pyright: ignore
                inverse = [order.index(d) for d in range(len(order))]
                self._sunk.add(node)
                return self._sink(source, out.permute(inverse))
            if target in _RESHAPES:
                reshaped = out.reshape(sizes)
                if reshaped is not None:
                    self._sunk.add(node)
                    return self._sink(source, reshaped)
            if target is aten.add.Tensor and not node.kwargs:
                both = [x for x in args[:2] if isinstance(x, fx.Node)]
                if len(both) == 2 and all(_sizes(x) == _sizes(node) for x in both):
                    self._sunk.add(node)
                    for each in both:
                        self._sink(each, out)
                    return None
        self._sinks[node].append(out)
        return None

    def _lower(self, node: fx.Node) -> Meaning:
        if node in self._sunk:
            return None
        target = node.target
        args = [self._argument(x) for x in node.args]
        known = self._known(node, args)
        if known is not None:
            return known
        sinks = self._sinks.get(node, ())
        # Only the sum is needed of products that have no other user.
        whole = bool(sinks) and all(u.op == "output" or u in self._sunk for u in node.users)
        if whole and target in (aten.mm.default, aten.bmm.default, aten.addmm.default):
            if self._outer(node, args, sinks):
                return None
        if whole and target is operator.getitem and isinstance(args[0], _ConvolutionGradients):
            return args[0].into(args[1], sinks)
        found = self._call(node, args)
        if isinstance(found, Expr) and not self._fuses(node, found):
            found = self.view(found, found.sizes)
        for out in sinks:
            value = self.spread(found, out.sizes)
            if level_of(value) == SAMPLE:
                self.add(Accumulate(out, value))
            elif not (isinstance(value, float) and value == 0):
                raise NotCompilable("a gradient does not depend on the sample", node)
        return found

    def _argument(self, x: Any) -> Any:
        if isinstance(x, fx.Node):
            return self.values[x]
        if isinstance(x, (list, tuple)):
            return [self._argument(each) for each in x]
        return x

    def _known(self, node: fx.Node, args: list[Any]) -> Tensor | tuple[Any, ...] | None:
        """What a node is where all that it takes is known now."""

        def depends(x: Any) -> bool:
            if isinstance(x, (list, tuple)):
                return any(depends(each) for each in x)
            return isinstance(x, (View, Expr, _ConvolutionGradients)) or x is None

        nodes = node.all_input_nodes
        if any(depends(self.values[each]) for each in nodes):
            return None
        target: Any = node.target
        if not nodes and target not in _CREATIONS:
            return None
        args = [
            torch.full(_sizes(n), x) if isinstance(n, fx.Node) and isinstance(x, float) else x
            for n, x in zip(node.args, args, strict=True)
        ]
        kwargs = {k: self._argument(v) for k, v in node.kwargs.items()}
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        with torch.no_grad():
            return target(*args, **kwargs)

    def _fuses(self, node: fx.Node, value: Expr) -> bool:
        """Whether a value is best computed where it is used."""
        if self._sinks.get(node) or len(node.users) != 1:
            return False
        (user,) = node.users
        if user.op != "call_function" or value.depth() > 24:
            return False
        if user.target in POINTWISE or user.target in _REDUCTIONS:
            # Each of the larger number of elements would compute it again.
            return user.target in _REDUCTIONS or math.prod(_sizes(user)) == math.prod(value.sizes)
        return user.target in _VIEWS

    def _call(self, node: fx.Node, args: list[Any]) -> Meaning:
        target: Any = node.target
        sizes = _sizes(node)
        make = POINTWISE.get(target)
        if make is not None:
            _check_dtype(node)
            return make(self, node, args, sizes)
        lower = _LOWER.get(target)
        if lower is None:
            raise NotCompilable(f"there is no code for the operation {target}", node)
        return lower(self, node, args, sizes)

    # Sums over samples of products.

    def _outer(self, node: fx.Node, args: list[Any], sinks: Sequence[View]) -> bool:
        if node.target is aten.addmm.default:
            return False
        a, b = (self.view(x, _sizes(n)) for x, n in zip(args, node.args, strict=True))
        if a.level != SAMPLE and b.level != SAMPLE:
            return False
        for out in sinks:
            for at in _elements(out.sizes[:-2]):
                self.add(Outer(_at(out, at), _at(a, at), _at(b, at)))
        return True


def _sizes(node: Any) -> Sizes:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _check_dtype(node: fx.Node) -> None:
    value = node.meta.get("val")
    if isinstance(value, Tensor) and value.is_complex():
        raise NotCompilable(f"complex numbers are not supported ({node.target})", node)
    if isinstance(value, Tensor) and not value.is_floating_point() and value.dtype != torch.bool:
        raise NotCompilable(f"integers that depend on the state or the time ({node.target})", node)


def _elements(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    places: list[tuple[int, ...]] = [()]
    for size in sizes:
        places = [(*each, i) for each in places for i in range(size)]
    return places


def _at(view: View, place: Sequence[int]) -> View:
    for i in place:
        view = view.narrow(0, i, 1).drop([0])
    return view


# Views: without code where a value is memory, or an expression of views.

_RESHAPES = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)


def _remap(
    low: Lowering, x: Any, node: Any, function: Callable[[View], View], sizes: Sizes
) -> Value:
    x = low.value(x)
    if isinstance(x, float):
        return low.table(torch.tensor(x)).expand(sizes)
    return function(x) if isinstance(x, View) else x.map(function, sizes)


def _reshape(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    x = low.value(args[0])
    if isinstance(x, float):
        return low.table(torch.tensor(x)).expand(sizes)
    source = _sizes(node.args[0])
    if isinstance(x, Expr):
        if all(leaf.reshape(sizes) is not None for leaf in x.leaves()):
            return x.map(lambda leaf: leaf.reshape(sizes), sizes)  # pyright: ignore
        x = low.view(x, source)
    return x.reshape(sizes) or low.copied(x, source).reshape(sizes)  # pyright: ignore


def _permute(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    order = [d % len(sizes) for d in args[1]]
    return _remap(low, args[0], node, lambda v: v.permute(order), sizes)


def _expand(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    return _remap(low, args[0], node, lambda v: v.expand(sizes), sizes)


def _broadcast_in_dim(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    dims = args[2]

    def function(v: View) -> View:
        strides = [0] * len(sizes)
        for d, stride, size in zip(dims, v.strides, v.sizes, strict=True):
            strides[d] = 0 if size == 1 and sizes[d] != 1 else stride
        return replace(v, sizes=sizes, strides=tuple(strides))

    return _remap(low, args[0], node, function, sizes)


def _unsqueeze(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    return _remap(low, args[0], node, lambda v: v.unsqueeze(args[1] % len(sizes)), sizes)


def _squeeze(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    source = _sizes(node.args[0])
    dims = range(len(source)) if len(args) < 2 else args[1]
    dims = [dims] if isinstance(dims, int) else dims
    found = [d % len(source) for d in dims if source[d] == 1] if source else []
    return _remap(low, args[0], node, lambda v: v.drop(found), sizes)


def _select(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    source = _sizes(node.args[0])
    dim = args[1] % len(source)
    at = args[2] % source[dim]
    return _remap(low, args[0], node, lambda v: v.narrow(dim, at, 1).drop([dim]), sizes)


def _range(args: list[Any], size: int) -> tuple[int, int]:
    """Start and step of a slice."""
    start = args[2] if len(args) > 2 and args[2] is not None else 0
    step = args[4] if len(args) > 4 else 1
    return min(max(start + size if start < 0 else start, 0), size), step


def _slice(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    source = _sizes(node.args[0])
    dim = (args[1] if len(args) > 1 else 0) % len(source)
    start, step = _range(args, source[dim])
    return _remap(low, args[0], node, lambda v: v.narrow(dim, start, sizes[dim], step), sizes)


def _as_strided(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    x = low.contiguous(args[0], _sizes(node.args[0]))
    offset = args[3] if len(args) > 3 and args[3] else 0
    return View(x.buffer, x.offset + offset, sizes, tuple(args[2]))


def _same(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    return low.spread(args[0], sizes)


def _flip(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    dims = [d % len(sizes) for d in args[1]]

    def function(v: View) -> View:
        for d in dims:
            v = v.narrow(d, v.sizes[d] - 1, v.sizes[d], -1)
        return v

    return _remap(low, args[0], node, function, sizes)


# Copies.


def _cat(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    parts: Any = node.args[0]
    pairs = [(low.value(low.values[p]), _sizes(p)) for p in parts if math.prod(_sizes(p)) or True]
    pairs = [(x, s) for x, s in pairs if s != (0,)]
    dim = (args[1] if len(args) > 1 else 0) % len(sizes)
    out = low.new(sizes, max(level_of(x) for x, _ in pairs))
    place = 0
    for x, part in pairs:
        target = out.narrow(dim, place, part[dim])
        low.add(Assign(target, low.spread(x, part)))
        place += part[dim]
    return out


def _overwritten(low: Lowering, base: Any, source: Any, sizes: Sizes, part: Any) -> View:
    """A copy of base in which ``part`` of it is source."""
    base = low.spread(base, sizes)
    level = max(level_of(base), level_of(low.value(source)))
    out = low.add(Assign(low.new(sizes, level), base))
    target = part(out)
    low.add(Assign(target, low.spread(source, target.sizes)))
    return out


def _slice_scatter(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    dim = (args[2] if len(args) > 2 else 0) % len(sizes)
    size = _sizes(node.args[1])[dim]
    start, step = _range([None, *args[2:]], sizes[dim])
    return _overwritten(
        low, args[0], args[1], sizes, lambda out: out.narrow(dim, start, size, step)
    )


def _select_scatter(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    dim = args[2] % len(sizes)
    at = args[3] % sizes[dim]
    return _overwritten(
        low, args[0], args[1], sizes, lambda out: out.narrow(dim, at, 1).drop([dim])
    )


def _slice_backward(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    dim = args[2] % len(sizes)
    size = _sizes(node.args[0])[dim]
    start, step = _range([None, dim, args[3], args[4], args[5]], sizes[dim])
    return _overwritten(low, 0.0, args[0], sizes, lambda out: out.narrow(dim, start, size, step))


def _select_backward(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    dim = args[2] % len(sizes)
    at = args[3] % sizes[dim]
    return _overwritten(low, 0.0, args[0], sizes, lambda out: out.narrow(dim, at, 1).drop([dim]))


def _moved(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    """Any operation that only moves elements: done once with their numbers."""
    source = _sizes(node.args[0])
    numbers = torch.arange(math.prod(source)).reshape(source)
    target: Any = node.target
    rest = [_checked_index(x, node) for x in args[1:]]
    places = target(numbers, *rest)
    return _gathered(low, args[0], source, places, sizes)


def _gathered(low: Lowering, x: Any, source: Sizes, places: Tensor, sizes: Sizes) -> Value:
    x = low.value(x)
    if isinstance(x, float):
        return x
    x = low.contiguous(x, source)
    out = low.new(sizes, x.level)
    return low.add(Gather(out, x, tuple(places.reshape(-1).tolist())))


def _checked_index(x: Any, node: fx.Node) -> Any:
    if isinstance(x, list):
        return [_checked_index(each, node) for each in x]
    if isinstance(x, (View, Expr)):
        raise NotCompilable("an index depends on the state, the time or a parameter", node)
    return x


def _embedding(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    source = _sizes(node.args[0])
    numbers = torch.arange(math.prod(source)).reshape(source)
    places = numbers[_checked_index(args[1], node)]
    return _gathered(low, args[0], source, places, sizes)


def _scattered(
    low: Lowering, x: Any, source: Sizes, places: Tensor, sizes: Sizes, scale: float = 1.0
) -> View:
    x = low.contiguous(low.spread(x, source), source)
    out = low.add(Assign(low.new(sizes, x.level), 0.0))
    return low.add(Scatter(out, x, tuple(places.reshape(-1).tolist()), scale))


def _index_put(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    numbers = torch.arange(math.prod(sizes)).reshape(sizes)
    indices = _checked_index(args[1], node)
    places = torch.ops.aten.index.Tensor(numbers, indices)
    accumulate = len(args) > 3 and args[3]
    if not accumulate:
        if len(set(places.reshape(-1).tolist())) != places.numel():
            raise NotCompilable("an assignment by index names an element twice", node)
        kept = torch.ones(math.prod(sizes))
        kept[places.reshape(-1)] = 0
        base: Value = low.expr("mul", [args[0], kept.reshape(sizes)], sizes)
    else:
        base = low.spread(args[0], sizes)
    added = _scattered(low, args[2], tuple(places.shape), places, sizes)
    if base == 0.0:
        return added
    return low.expr("add", [base, added], sizes)


def _scatter_add(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    base, dim, index, source = args
    index = _checked_index(index, node)
    numbers = torch.arange(math.prod(sizes)).reshape(sizes)
    places = numbers.gather(dim, index)
    part = low.view(source, _sizes(node.args[3]))
    for d, size in enumerate(index.shape):
        part = part.narrow(d, 0, size)
    added = _scattered(low, part, tuple(index.shape), places, sizes)
    base = low.spread(base, sizes)
    return added if base == 0.0 else low.expr("add", [base, added], sizes)


# Reductions.


def _dims(args: list[Any], place: int, source: Sizes) -> list[int]:
    dims = args[place] if len(args) > place else None
    dims = [dims] if isinstance(dims, int) else dims
    return [d % len(source) for d in dims] if dims and source else list(range(len(source)))


def _reduced(
    low: Lowering, x: Any, source: Sizes, dims: Sequence[int], keep: bool, **how: Any
) -> View:
    x = low.spread(x, source)
    kept = tuple(1 if d in dims else n for d, n in enumerate(source))
    out = low.add(Reduce(low.new(kept, level_of(x)), x, source, **how))
    return out if keep else out.drop(dims)


def _sum(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    source = _sizes(node.args[0])
    dims = _dims(args, 1, source)
    keep = bool(args[2]) if len(args) > 2 else False
    if math.prod(source[d] for d in dims) == 1:
        value = low.spread(args[0], source)
        drop = (lambda v: v) if keep else (lambda v: v.drop(dims))
        return _remap(low, value, node, drop, sizes)
    return _reduced(low, args[0], source, dims, keep)


def _mean(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    source = _sizes(node.args[0])
    dims = _dims(args, 1, source)
    keep = bool(args[2]) if len(args) > 2 else False
    count = math.prod(source[d] for d in dims)
    return _reduced(low, args[0], source, dims, keep, scale=1 / count)


def _extreme(kind: str) -> Callable[..., Value]:
    def lower(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
        source = _sizes(node.args[0])
        keep = bool(args[2]) if len(args) > 2 else False
        return _reduced(low, args[0], source, _dims(args, 1, source), keep, kind=kind)

    return lower


def _any(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    source = _sizes(node.args[0])
    keep = bool(args[2]) if len(args) > 2 else False
    nonzero = low.expr("ne", [args[0], 0.0], source)
    return _reduced(low, nonzero, source, _dims(args, 1, source), keep, kind="max")


def _variance(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    source = _sizes(node.args[0])
    dims = _dims(args, 1, source)
    correction: Any = node.kwargs.get("correction", args[2] if len(args) > 2 else 1)
    correction = 1 if correction is None else correction
    keep = bool(node.kwargs.get("keepdim", False))
    count = math.prod(source[d] for d in dims)
    x = low.view(args[0], source)
    mean = _reduced(low, x, source, dims, True, scale=1 / count)
    deviation = low.expr("sub", [x, mean], source)
    square = low.expr("square", [deviation], source)
    return _reduced(low, square, source, dims, keep, scale=1 / max(count - correction, 0))


def _cumsum(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    x = low.view(args[0], sizes)
    return low.add(Cumulate(low.new(sizes, x.level), x, args[1] % len(sizes)))


# Products and convolutions.


def _product(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    bias = None
    nodes = list(node.args)
    if node.target is aten.addmm.default:
        if node.kwargs:
            raise NotCompilable("addmm with alpha or beta", node)
        bias = low.view(args[0], _sizes(nodes[0])).expand(sizes)
        args, nodes = args[1:], nodes[1:]
    a, b = low.view(args[0], _sizes(nodes[0])), low.view(args[1], _sizes(nodes[1]))
    level = max(a.level, b.level, bias.level if bias else PARAMETERS)
    out = low.new(sizes, level)
    for at in _elements(sizes[:-2]):
        low.add(Product(_at(out, at), _at(a, at), _at(b, at), bias))
    return out


def _dot(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    source = _sizes(node.args[0])
    product = low.expr("mul", args[:2], source)
    return _reduced(low, product, source, [len(source) - 1], False)


def _shape(node: fx.Node, x: Sizes, weight: Sizes, args: list[Any]) -> Convolution:
    stride, padding, dilation, transposed, output_padding, groups = args
    rank = len(weight) - 2
    if rank not in (1, 2):
        raise NotCompilable(f"convolutions of {rank} dimensions", node)

    def pair(values: Sequence[int], fill: int) -> tuple[int, int]:
        full = list(values) if len(values) == rank else list(values) * rank
        return (full[0], full[1]) if rank == 2 else (fill, full[0])

    image, kernel = pair(x[-rank:], 1), pair(weight[2:], 1)
    stride, dilation = pair(stride, 1), pair(dilation, 1)
    padding, extra = pair(padding, 0), pair(output_padding, 0)
    result = [0, 0]
    for d in range(2):
        span = dilation[d] * (kernel[d] - 1)
        if transposed:
            result[d] = (image[d] - 1) * stride[d] - 2 * padding[d] + span + extra[d] + 1
        else:
            result[d] = (image[d] + 2 * padding[d] - span - 1) // stride[d] + 1
    size = (result[0], result[1])
    if transposed:
        # As the gradient of the convolution that goes the other way.
        return Convolution(
            groups, weight[1], weight[0] // groups, size, image, kernel, stride, padding, dilation
        )
    return Convolution(
        groups, weight[1], weight[0] // groups, image, size, kernel, stride, padding, dilation
    )


def _one_sample(node: fx.Node, sizes: Sizes) -> None:
    if sizes[0] != 1:
        raise NotCompilable("a convolution over more than one image for each sample", node)


def _convolution(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    x_sizes, w_sizes = _sizes(node.args[0]), _sizes(node.args[1])
    _one_sample(node, x_sizes)
    shape = _shape(node, x_sizes, w_sizes, args[3:9])
    x = low.contiguous(args[0], x_sizes)
    weight = low.contiguous(args[1], w_sizes)
    bias = None if args[2] is None else low.view(args[2], _sizes(node.args[2]))
    _uniform(node, weight, bias)
    kind = "input" if args[6] else "forward"
    return low.add(Convolve(low.new(sizes, x.level), kind, shape, x, weight, bias))


def _uniform(node: fx.Node, *views: View | None) -> None:
    if any(v is not None and v.level == SAMPLE for v in views):
        raise NotCompilable("a convolution whose weights depend on the sample", node)


class _ConvolutionGradients:
    """The three results of convolution_backward, made when they are asked for."""

    def __init__(self, low: Lowering, node: fx.Node, args: list[Any]):
        self.low, self.node = low, node
        self.g_sizes, self.x_sizes, self.w_sizes = (_sizes(n) for n in node.args[:3])
        _one_sample(node, self.x_sizes)
        self.transposed = bool(args[7])
        self.shape = _shape(node, self.x_sizes, self.w_sizes, args[4:10])
        self.g = low.contiguous(args[0], self.g_sizes)
        self.x, self.weight = args[1], args[2]

    def __getitem__(self, index: int) -> Value:
        low = self.low
        if index == 0:
            weight = low.contiguous(self.weight, self.w_sizes)
            _uniform(self.node, weight)
            kind = "forward" if self.transposed else "input"
            out = low.new(self.x_sizes, self.g.level)
            return low.add(Convolve(out, kind, self.shape, self.g, weight))
        if index == 2:
            dims = [0, *range(2, len(self.g_sizes))]
            return _reduced(low, self.g, self.g_sizes, dims, False)
        raise NotCompilable("the gradient of a convolution's weights for each sample", self.node)

    def into(self, index: int, sinks: Sequence[View]) -> None:
        low = self.low
        if index != 1:
            value = self[index]
            for out in sinks:
                low.add(Accumulate(out, low.spread(value, out.sizes)))
            return
        x = low.contiguous(self.x, self.x_sizes)
        # The image is what the convolution reads, transposed or not.
        image, result = (self.g, x) if self.transposed else (x, self.g)
        for out in sinks:
            if not out.contiguous():
                raise NotCompilable("a convolution's weights in another layout", self.node)
            low.add(Convolve(out, "weight", self.shape, image, result))


def _convolution_backward(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Any:
    return _ConvolutionGradients(low, node, args)


def _pooled(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    source = _sizes(node.args[0])
    kernel, stride = args[1], args[2] if len(args) > 2 and args[2] else args[1]
    rest = args[3:]
    if any(any(x) if isinstance(x, list) else x for x in rest[:2]):
        raise NotCompilable("average pooling with padding or ceil_mode", node)
    x = low.contiguous(args[0], source)
    (kh, kw), (sh, sw) = _two(kernel), _two(stride)
    *lead, h, w = source
    windows = View(
        x.buffer, x.offset, (*sizes, kh, kw), (*strides_of((*lead, h, w))[:-2], sh * w, sw, w, 1)
    )
    n = len(sizes)
    return _reduced(low, windows, windows.sizes, [n, n + 1], False, scale=1 / (kh * kw))


def _two(x: Any) -> tuple[int, int]:
    values = list(x) if isinstance(x, (list, tuple)) else [x]
    return (values[0], values[-1])


def _pooled_backward(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    kernel, stride = _two(args[2]), _two(args[3] if args[3] else args[2])
    if any(args[4]) or args[5]:
        raise NotCompilable("average pooling with padding or ceil_mode", node)
    g_sizes = _sizes(node.args[0])
    numbers = torch.arange(math.prod(sizes)).reshape(sizes)
    windows = numbers.unfold(-2, kernel[0], stride[0]).unfold(-2, kernel[1], stride[1])
    windows = windows.reshape(*g_sizes, -1)
    g = low.spread(low.view(args[0], g_sizes).unsqueeze(len(g_sizes)), windows.shape)
    return _scattered(
        low, g, tuple(windows.shape), windows, sizes, scale=1 / (kernel[0] * kernel[1])
    )


def _nearest_backward(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    numbers = torch.arange(math.prod(sizes)).reshape(sizes)
    places = aten.upsample_nearest2d.default(numbers.double(), args[1]).long()
    return _scattered(low, args[0], tuple(places.shape), places, sizes)


def _split(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> tuple[Value, ...]:
    source = _sizes(node.args[0])
    dim = (args[2] if len(args) > 2 else 0) % len(source)
    parts, place = [], 0
    for size in args[1]:
        start = place
        part = (*source[:dim], size, *source[dim + 1 :])
        parts.append(
            _remap(low, args[0], node, lambda v, a=start, n=size: v.narrow(dim, a, n), part)
        )
        place += size
    return tuple(parts)


def _item(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Any:
    return args[0][args[1]]


def _full(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    return float(args[1])


def _zeros(low: Lowering, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    return 0.0


_CREATIONS = (
    aten.full.default, aten.arange.start_step, aten.arange.default, aten.arange.start,
    aten.scalar_tensor.default, aten.zeros.default, aten.ones.default, aten.eye.default,
)  # fmt: skip

_VIEWS: dict[Any, Callable[..., Any]] = {
    **{target: _reshape for target in _RESHAPES},
    aten.permute.default: _permute,
    aten.expand.default: _expand,
    prims.broadcast_in_dim.default: _broadcast_in_dim,
    aten.unsqueeze.default: _unsqueeze,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.squeeze.default: _squeeze,
    aten.select.int: _select,
    aten.slice.Tensor: _slice,
    aten.flip.default: _flip,
    prims.rev.default: _flip,
    aten.alias.default: _same,
    aten.detach.default: _same,
    aten.lift_fresh_copy.default: _same,
}
_REDUCTIONS: dict[Any, Callable[..., Any]] = {
    aten.sum.dim_IntList: _sum,
    aten.sum.default: _sum,
    prims.sum.default: _sum,
    aten.mean.dim: _mean,
    aten.mean.default: _mean,
    aten.amax.default: _extreme("max"),
    aten.amin.default: _extreme("min"),
    aten.any.dim: _any,
    aten.any.default: _any,
}
_LOWER: dict[Any, Callable[..., Any]] = {
    **_VIEWS,
    **_REDUCTIONS,
    operator.getitem: _item,
    aten.var.correction: _variance,
    prims.var.default: _variance,
    aten.split_with_sizes.default: _split,
    aten.cumsum.default: _cumsum,
    aten.as_strided.default: _as_strided,
    aten.full_like.default: _full,
    aten.zeros_like.default: _zeros,
    aten.empty.memory_format: _zeros,
    aten.empty_permuted.default: _zeros,
    aten.new_empty_strided.default: _zeros,
    aten.cat.default: _cat,
    aten.slice_scatter.default: _slice_scatter,
    aten.select_scatter.default: _select_scatter,
    aten.slice_backward.default: _slice_backward,
    aten.select_backward.default: _select_backward,
    aten.repeat.default: _moved,
    aten.index.Tensor: _moved,
    aten.index_select.default: _moved,
    aten.gather.default: _moved,
    aten.embedding.default: _embedding,
    aten.index_put.default: _index_put,
    aten.scatter_add.default: _scatter_add,
    aten.mm.default: _product,
    aten.bmm.default: _product,
    aten.addmm.default: _product,
    aten.dot.default: _dot,
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
    aten.avg_pool2d.default: _pooled,
    aten.avg_pool2d_backward.default: _pooled_backward,
    aten.upsample_nearest2d_backward.default: _nearest_backward,
}
