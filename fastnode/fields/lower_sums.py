"""Reductions, products, convolutions and pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from fastnode.errors import NotCompilable
from fastnode.fields.build import Builder, Deferred, element, elements, sizes_of
from fastnode.fields.ir import (
    PARAMETERS,
    SAMPLE,
    Accumulate,
    Assign,
    Convolution,
    Convolve,
    Cumulate,
    Product,
    Reduce,
    Sizes,
    Value,
    View,
    level_of,
    strides_of,
)
from fastnode.fields.lower_shapes import remap, scattered

aten, prims = torch.ops.aten, torch.ops.prims

#: Elements up to which a product of all of them is written out.
_MOST_FACTORS = 64

# Reductions.


def _dims(args: list[Any], place: int, source: Sizes) -> list[int]:
    dims = args[place] if len(args) > place else None
    dims = [dims] if isinstance(dims, int) else dims
    return [d % len(source) for d in dims] if dims and source else list(range(len(source)))


def _reduced(
    build: Builder, x: Any, source: Sizes, dims: Sequence[int], keep: bool, **how: Any
) -> View:
    x = build.spread(x, source)
    kept = tuple(1 if d in dims else n for d, n in enumerate(source))
    out = build.add(Reduce(build.new(kept, level_of(x)), x, source, **how))
    return out if keep else out.drop(dims)


def _sum(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    source = sizes_of(node.args[0])
    dims = _dims(args, 1, source)
    keep = bool(args[2]) if len(args) > 2 else False
    if math.prod(source[d] for d in dims) == 1:
        value = build.spread(args[0], source)
        drop = (lambda v: v) if keep else (lambda v: v.drop(dims))
        return remap(build, value, drop, sizes)
    return _reduced(build, args[0], source, dims, keep)


def _mean(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    source = sizes_of(node.args[0])
    dims = _dims(args, 1, source)
    keep = bool(args[2]) if len(args) > 2 else False
    count = math.prod(source[d] for d in dims)
    return _reduced(build, args[0], source, dims, keep, scale=1 / count)


def _extreme(kind: str) -> Callable[..., Value]:
    def lower(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
        source = sizes_of(node.args[0])
        keep = bool(args[2]) if len(args) > 2 else False
        return _reduced(build, args[0], source, _dims(args, 1, source), keep, kind=kind)

    return lower


def _any(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    source = sizes_of(node.args[0])
    keep = bool(args[2]) if len(args) > 2 else False
    nonzero = build.expr("ne", [args[0], 0.0], source)
    return _reduced(build, nonzero, source, _dims(args, 1, source), keep, kind="max")


def _variance(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    source = sizes_of(node.args[0])
    dims = _dims(args, 1, source)
    correction: Any = node.kwargs.get("correction", args[2] if len(args) > 2 else 1)
    correction = 1 if correction is None else correction
    keep = bool(node.kwargs.get("keepdim", False))
    count = math.prod(source[d] for d in dims)
    x = build.view(args[0], source)
    mean = _reduced(build, x, source, dims, True, scale=1 / count)
    deviation = build.expr("sub", [x, mean], source)
    square = build.expr("square", [deviation], source)
    # The variance of a single number is NaN, as zero times infinity is.
    scale = 1 / (count - correction) if count > correction else math.inf
    return _reduced(build, square, source, dims, keep, scale=scale)


def _cumsum(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    x = build.view(args[0], sizes)
    return build.add(Cumulate(build.new(sizes, x.level), x, args[1] % len(sizes)))


# Products and convolutions.


def _product(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    bias = None
    nodes = list(node.args)
    if node.target is aten.addmm.default:
        bias, args, nodes = args[0], args[1:], nodes[1:]
        beta, alpha = (float(node.kwargs.get(x, 1)) for x in ("beta", "alpha"))  # pyright: ignore
        if beta != 1:
            bias = build.expr("mul", [bias, beta], sizes)
        if alpha != 1:
            args = [build.expr("mul", [args[0], alpha], sizes_of(nodes[0])), args[1]]
        bias = build.view(bias, sizes_of(node.args[0])).expand(sizes)
    a, b = build.view(args[0], sizes_of(nodes[0])), build.view(args[1], sizes_of(nodes[1]))
    level = max(a.level, b.level, bias.level if bias else PARAMETERS)
    out = build.new(sizes, level)
    for at in elements(sizes[:-2]):
        build.add(Product(element(out, at), element(a, at), element(b, at), bias))
    return out


def _factors(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    """The product of all elements of one dimension, or of all."""
    source = sizes_of(node.args[0])
    x = build.view(args[0], source)
    keep = bool(args[2]) if len(args) > 2 else False
    if len(args) < 2 or not source:
        x, dim = build.contiguous(x, source).reshape((x.numel,)), 0
        assert x is not None
    else:
        dim = args[1] % len(source)
    if x.sizes[dim] > _MOST_FACTORS:
        raise NotCompilable(f"a product of {x.sizes[dim]} elements", node)
    parts = [x.narrow(dim, i, 1) for i in range(x.sizes[dim])]
    total: Value = parts[0] if parts else 1.0
    for part in parts[1:]:
        total = build.expr("mul", [total, part], part.sizes)
    found = build.view(total, (*x.sizes[:dim], 1, *x.sizes[dim + 1 :]))
    return found if keep and source else found.drop([dim])


def _cumprod(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    if not sizes:
        return build.spread(args[0], sizes)
    x, dim = build.view(args[0], sizes), args[1] % len(sizes)
    if sizes[dim] > _MOST_FACTORS:
        raise NotCompilable(f"products of up to {sizes[dim]} elements", node)
    out = build.new(sizes, x.level)
    for i in range(sizes[dim]):
        value: Value = x.narrow(dim, i, 1)
        if i:
            value = build.expr("mul", [out.narrow(dim, i - 1, 1), value], value.sizes)
        build.add(Assign(out.narrow(dim, i, 1), value))
    return out


def _dot(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    source = sizes_of(node.args[0])
    product = build.expr("mul", args[:2], source)
    return _reduced(build, product, source, [len(source) - 1], False)


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


def _convolution(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    x_sizes, w_sizes = sizes_of(node.args[0]), sizes_of(node.args[1])
    _one_sample(node, x_sizes)
    shape = _shape(node, x_sizes, w_sizes, args[3:9])
    x = build.contiguous(args[0], x_sizes)
    weight = build.contiguous(args[1], w_sizes)
    bias = None if args[2] is None else build.view(args[2], sizes_of(node.args[2]))
    _uniform(node, weight, bias)
    kind = "input" if args[6] else "forward"
    return build.add(Convolve(build.new(sizes, x.level), kind, shape, x, weight, bias))


def _uniform(node: fx.Node, *views: View | None) -> None:
    if any(v is not None and v.level == SAMPLE for v in views):
        raise NotCompilable("a convolution whose weights depend on the sample", node)


class ConvolutionGradients(Deferred):
    """The three results of convolution_backward."""

    def __init__(self, build: Builder, node: fx.Node, args: list[Any]):
        self.build, self.node = build, node
        self.g_sizes, self.x_sizes, self.w_sizes = (sizes_of(n) for n in node.args[:3])
        _one_sample(node, self.x_sizes)
        self.transposed = bool(args[7])
        self.shape = _shape(node, self.x_sizes, self.w_sizes, args[4:10])
        self.g = build.contiguous(args[0], self.g_sizes)
        self.x, self.weight = args[1], args[2]

    def __getitem__(self, index: int) -> Value:
        build = self.build
        if index == 0:
            weight = build.contiguous(self.weight, self.w_sizes)
            _uniform(self.node, weight)
            kind = "forward" if self.transposed else "input"
            out = build.new(self.x_sizes, self.g.level)
            return build.add(Convolve(out, kind, self.shape, self.g, weight))
        if index == 2:
            dims = [0, *range(2, len(self.g_sizes))]
            return _reduced(build, self.g, self.g_sizes, dims, False)
        raise NotCompilable("the gradient of a convolution's weights for each sample", self.node)

    def into(self, index: int, sinks: Sequence[View]) -> None:
        build = self.build
        if index != 1:
            value = self[index]
            for out in sinks:
                build.add(Accumulate(out, build.spread(value, out.sizes)))
            return
        x = build.contiguous(self.x, self.x_sizes)
        # The image is what the convolution reads, transposed or not.
        image, result = (self.g, x) if self.transposed else (x, self.g)
        for out in sinks:
            if not out.contiguous():
                raise NotCompilable("a convolution's weights in another layout", self.node)
            build.add(Convolve(out, "weight", self.shape, image, result))


def _convolution_backward(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Any:
    return ConvolutionGradients(build, node, args)


def _pooled(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    source = sizes_of(node.args[0])
    kernel, stride = args[1], args[2] if len(args) > 2 and args[2] else args[1]
    rest = args[3:]
    if any(any(x) if isinstance(x, list) else x for x in rest[:2]):
        raise NotCompilable("average pooling with padding or ceil_mode", node)
    x = build.contiguous(args[0], source)
    (kh, kw), (sh, sw) = _two(kernel), _two(stride)
    *lead, h, w = source
    windows = View(
        x.buffer, x.offset, (*sizes, kh, kw), (*strides_of((*lead, h, w))[:-2], sh * w, sw, w, 1)
    )
    n = len(sizes)
    return _reduced(build, windows, windows.sizes, [n, n + 1], False, scale=1 / (kh * kw))


def _two(x: Any) -> tuple[int, int]:
    values = list(x) if isinstance(x, (list, tuple)) else [x]
    return (values[0], values[-1])


def _pooled_backward(build: Builder, node: fx.Node, args: list[Any], sizes: Sizes) -> Value:
    kernel, stride = _two(args[2]), _two(args[3] if args[3] else args[2])
    if any(args[4]) or args[5]:
        raise NotCompilable("average pooling with padding or ceil_mode", node)
    g_sizes = sizes_of(node.args[0])
    numbers = torch.arange(math.prod(sizes)).reshape(sizes)
    windows = numbers.unfold(-2, kernel[0], stride[0]).unfold(-2, kernel[1], stride[1])
    windows = windows.reshape(*g_sizes, -1)
    g = build.spread(build.view(args[0], g_sizes).unsqueeze(len(g_sizes)), windows.shape)
    return scattered(
        build, g, tuple(windows.shape), windows, sizes, scale=1 / (kernel[0] * kernel[1])
    )


#: Operations that read each element of an expression once.
REDUCTIONS: dict[Any, Callable[..., Any]] = {
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
#: And all others whose results are sums of elements.
SUMS: dict[Any, Callable[..., Any]] = {
    **REDUCTIONS,
    aten.var.correction: _variance,
    prims.var.default: _variance,
    aten.cumsum.default: _cumsum,
    aten.cumprod.default: _cumprod,
    aten.prod.default: _factors,
    aten.prod.dim_int: _factors,
    aten.mm.default: _product,
    aten.bmm.default: _product,
    aten.addmm.default: _product,
    aten.dot.default: _dot,
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
    aten.avg_pool2d.default: _pooled,
    aten.avg_pool2d_backward.default: _pooled_backward,
}
