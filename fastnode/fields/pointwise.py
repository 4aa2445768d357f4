"""The operations on each element: PyTorch's names and those of the code that is emitted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fastnode.fields.build import Builder, sizes_of

aten, prims = torch.ops.aten, torch.ops.prims

#: Functions of one number, by the names of PyTorch's core operations.
UNARY = (
    "abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "ceil", "cos", "cosh", "erf", "erfc",
    "exp", "expm1", "floor", "isinf", "isnan", "log", "log10", "log1p", "log2", "logical_not",
    "neg", "reciprocal", "relu", "round", "rsqrt", "sigmoid", "sign", "sin", "sinh", "sqrt", "tan",
    "tanh", "trunc",
)  # fmt: skip
#: Functions of two.
BINARY = (
    "add", "atan2", "copysign", "div", "eq", "fmod", "ge", "gt", "hypot", "le", "logical_and",
    "logical_or", "logical_xor", "lt", "maximum", "minimum", "mul", "ne", "pow", "remainder", "sub",
)  # fmt: skip
#: Operations whose results on integers are those on numbers of the same value.
ON_INTEGERS = {
    "abs", "add", "alias", "clamp", "clone", "_to_copy", "convert_element_type", "maximum",
    "minimum", "mul", "neg", "relu", "sign", "sub", "where",
}  # fmt: skip


def _plain(name: str) -> Callable[..., Any]:
    def make(build: Builder, node: fx.Node, args: list[Any], sizes: Any) -> Any:
        return build.expr(name, args, sizes)

    return make


def _scaled(name: str) -> Callable[..., Any]:
    """add and sub, whose second term may have a factor."""

    def make(build: Builder, node: fx.Node, args: list[Any], sizes: Any) -> Any:
        first, second = args[:2]
        factor: Any = node.kwargs.get("alpha", args[2] if len(args) > 2 else 1)
        if factor != 1:
            second = build.expr("mul", [second, float(factor)], sizes)
        return build.expr(name, [first, second], sizes)

    return make


def same(build: Builder, node: fx.Node, args: list[Any], sizes: Any) -> Any:
    return build.spread(args[0], sizes)


def _copied(build: Builder, node: fx.Node, args: list[Any], sizes: Any) -> Any:
    return build.spread(args[1], sizes)


def _converted(build: Builder, node: fx.Node, args: list[Any], sizes: Any) -> Any:
    """To another dtype: numbers stay numbers; truth of a number is asked for by bool, and integers
    lie towards zero."""
    to, came = node.meta["val"].dtype, node.args[0].meta["val"].dtype  # pyright: ignore
    if to == torch.bool and came != torch.bool:
        return build.expr("ne", [args[0], 0.0], sizes)
    if came.is_floating_point and not (to.is_floating_point or to == torch.bool):
        return build.expr("trunc", [args[0]], sizes)
    return build.spread(args[0], sizes)


def _pow(build: Builder, node: fx.Node, args: list[Any], sizes: Any) -> Any:
    base, exponent = args[:2]
    if isinstance(exponent, (int, float)):
        if exponent == 1:
            return build.spread(base, sizes)
        simple = {2: "square", 3: "cube", 0.5: "sqrt", -1: "reciprocal", -0.5: "rsqrt"}
        if exponent in simple:
            return build.expr(simple[exponent], [base], sizes)
    return build.expr("pow", [base, exponent], sizes)


def _clamp(build: Builder, node: fx.Node, args: list[Any], sizes: Any) -> Any:
    x = args[0]
    low_end = args[1] if len(args) > 1 else node.kwargs.get("min")
    high_end = args[2] if len(args) > 2 else node.kwargs.get("max")
    if low_end is not None:
        x = build.expr("maximum", [x, low_end], sizes)
    if high_end is not None:
        x = build.expr("minimum", [x, high_end], sizes)
    return x


def _exp2(build: Builder, node: fx.Node, args: list[Any], sizes: Any) -> Any:
    return build.expr("pow", [2.0, args[0]], sizes)


def _larger(comparison: str) -> Callable[..., Any]:
    """fmax and fmin: of a number and NaN the number."""

    def make(build: Builder, node: fx.Node, args: list[Any], sizes: Any) -> Any:
        a, b = (build.view(x, sizes_of(n)) for x, n in zip(args, node.args, strict=True))
        b_is_nan = build.expr("isnan", [b], sizes)
        first = build.expr("logical_or", [b_is_nan, build.expr(comparison, [a, b], sizes)], sizes)
        return build.expr("where", [first, a, b], sizes)

    return make


def _div_mode(build: Builder, node: fx.Node, args: list[Any], sizes: Any) -> Any:
    quotient = build.expr("div", args[:2], sizes)
    mode = node.kwargs.get("rounding_mode")
    return quotient if mode is None else build.expr(str(mode), [quotient], sizes)


def _table() -> dict[Any, Callable[..., Any]]:
    table: dict[Any, Callable[..., Any]] = {}

    def add(name: str, make: Callable[..., Any], overloads: tuple[str, ...]) -> None:
        packet = getattr(aten, name, None)
        for overload in overloads:
            found = getattr(packet, overload, None) if packet is not None else None
            if found is not None:
                table[found] = make

    for name in UNARY:
        add(name, _plain(name), ("default",))
    for name in BINARY:
        add(name, _plain(name), ("Tensor", "Scalar", "default"))
    for name in ("add", "sub"):
        add(name, _scaled(name), ("Tensor", "Scalar"))
    add("pow", _pow, ("Tensor_Scalar", "Tensor_Tensor", "Scalar"))
    add("exp2", _exp2, ("default",))
    add("fmax", _larger("ge"), ("default",))
    add("fmin", _larger("le"), ("default",))
    add("where", _plain("where"), ("self", "ScalarOther", "ScalarSelf", "Scalar"))
    add("clamp", _clamp, ("default", "Tensor"))
    add("clamp_min", _clamp, ("default",))
    add("bitwise_not", _plain("logical_not"), ("default",))
    add("bitwise_and", _plain("logical_and"), ("Tensor", "Scalar"))
    add("bitwise_or", _plain("logical_or"), ("Tensor", "Scalar"))
    add("bitwise_xor", _plain("logical_xor"), ("Tensor", "Scalar"))
    add("div", _div_mode, ("Tensor_mode", "Scalar_mode"))
    for name in ("clone", "alias", "contiguous"):
        add(name, same, ("default",))
    add("copy", _copied, ("default",))
    add("_to_copy", _converted, ("default",))
    for name, make in (
        ("convert_element_type", _converted), ("div", _plain("div")), ("fma", _plain("fma")),
    ):  # fmt: skip
        packet = getattr(prims, name, None)
        if packet is not None:
            table[packet.default] = make
    return table


#: From an operation to what makes its expression: (builder, node, arguments, sizes) -> Expr.
POINTWISE = _table()
