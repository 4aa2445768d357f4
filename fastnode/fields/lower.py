"""From a graph of PyTorch's core operations to statements (ir.py)."""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from fastnode.errors import NotCompilable
from fastnode.fields.build import Builder, Deferred, element, elements, sizes_of
from fastnode.fields.ir import SAMPLE, Accumulate, Expr, Outer, Sizes, Value, View, level_of
from fastnode.fields.lower_order import ORDERS
from fastnode.fields.lower_shapes import RESHAPES, SHAPES, VIEWS
from fastnode.fields.lower_sums import REDUCTIONS, SUMS, ConvolutionGradients
from fastnode.fields.pointwise import ON_INTEGERS, POINTWISE

aten = torch.ops.aten

#: What a node stands for: a value, a tensor whose numbers are known now, or several of these.
Meaning: TypeAlias = "Value | Tensor | tuple[Any, ...] | None"


class Lowering(Builder):
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
        super().__init__()
        self.module, self.graph = graph, graph.graph
        self.values: dict[fx.Node, Meaning] = {}
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
        if not made:
            raise NotCompilable(
                f"it reads a tensor of shape {tuple(value.shape)} that is neither a parameter nor "
                "a buffer, whose changes would not be seen; use register_buffer, or for a function "
                "name it in adjoint_params",
                next(iter(node.users), node),
            )
        return value.detach()

    # Nodes.

    def _sink(self, node: fx.Node, out: View) -> None:
        """Marks that the sum of ``node`` over samples is to be added to ``out``."""
        if node.op != "call_function" or len(node.users) != 1:
            self._sinks[node].append(out)
            return
        target, args = node.target, node.args
        source = args[0] if args else None
        if target is aten.cat.default and isinstance(source, (list, tuple)):
            # A weight that is split, as one with a column for the time.
            sizes = sizes_of(node)
            dim = (int(args[1]) if len(args) > 1 else 0) % len(sizes)  # pyright: ignore
            self._sunk.add(node)
            start = 0
            for part in source:
                size = sizes_of(part)[dim]
                self._sink(part, out.narrow(dim, start, size))  # pyright: ignore
                start += size
            return None
        if isinstance(source, fx.Node):
            sizes = sizes_of(source)
            if target is aten.permute.default:
                order = [d % len(sizes) for d in args[1]]  # pyright: ignore
                inverse = [order.index(d) for d in range(len(order))]
                self._sunk.add(node)
                return self._sink(source, out.permute(inverse))
            if target in RESHAPES:
                reshaped = out.reshape(sizes)
                if reshaped is not None:
                    self._sunk.add(node)
                    return self._sink(source, reshaped)
            if target is aten.add.Tensor and not node.kwargs:
                both = [x for x in args[:2] if isinstance(x, fx.Node)]
                if len(both) == 2 and all(sizes_of(x) == sizes_of(node) for x in both):
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
        if whole and target is operator.getitem and isinstance(args[0], ConvolutionGradients):
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
            return isinstance(x, (View, Expr, Deferred)) or x is None

        nodes = node.all_input_nodes
        if any(depends(self.values[each]) for each in nodes):
            return None
        target: Any = node.target
        if not nodes and target not in _CREATIONS:
            return None
        args = [
            torch.full(sizes_of(n), x, dtype=n.meta["val"].dtype)
            if isinstance(n, fx.Node) and isinstance(x, float)
            else x
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
        if user.target in POINTWISE or user.target in REDUCTIONS:
            # Each of the larger number of elements would compute it again.
            return user.target in REDUCTIONS or math.prod(sizes_of(user)) == math.prod(value.sizes)
        return user.target in VIEWS

    def _call(self, node: fx.Node, args: list[Any]) -> Meaning:
        target: Any = node.target
        sizes = sizes_of(node)
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
        a, b = (self.view(x, sizes_of(n)) for x, n in zip(args, node.args, strict=True))
        if a.level != SAMPLE and b.level != SAMPLE:
            return False
        for out in sinks:
            for at in elements(out.sizes[:-2]):
                self.add(Outer(element(out, at), element(a, at), element(b, at)))
        return True


def _check_dtype(node: fx.Node) -> None:
    value = node.meta.get("val")
    if isinstance(value, Tensor) and value.is_complex():
        raise NotCompilable(f"complex numbers are not supported ({node.target})", node)
    if not isinstance(value, Tensor) or value.is_floating_point() or value.dtype == torch.bool:
        return
    if getattr(node.target, "__name__", "").partition(".")[0] not in ON_INTEGERS:
        raise NotCompilable(f"integers that depend on the state or the time ({node.target})", node)


def _item(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Any:
    return args[0][args[1]]


def _full(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    return float(args[1])


def _zeros(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    return 0.0


_CREATIONS = (
    aten.full.default, aten.arange.start_step, aten.arange.default, aten.arange.start,
    aten.scalar_tensor.default, aten.zeros.default, aten.ones.default, aten.eye.default,
)  # fmt: skip

_LOWER: dict[Any, Callable[..., Any]] = {
    **SHAPES,
    **SUMS,
    **ORDERS,
    operator.getitem: _item,
    aten.full_like.default: _full,
    aten.zeros_like.default: _zeros,
    aten.empty.memory_format: _zeros,
    aten.empty_permuted.default: _zeros,
    aten.new_empty_strided.default: _zeros,
}
