"""A vector field for one sample as two graphs of PyTorch's core operations: value and VJP.

Sizes of one sample are fixed and the batch is free, so the graphs hold no symbolic sizes. The VJP
is made by autograd, not by torch.func, so that fields which call autograd themselves (traces,
Hamiltonians) can be traced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import core_aten_decompositions, get_decompositions
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastnode.errors import NotCompilable

aten = torch.ops.aten

#: Operations that are taken apart beside those outside of the core set.
_APART = (
    aten.native_layer_norm, aten.native_layer_norm_backward,
    aten.native_group_norm, aten.native_group_norm_backward,
    aten.native_batch_norm, aten._native_batch_norm_legit,
    aten._native_batch_norm_legit_no_training, aten.native_batch_norm_backward,
    aten._softmax, aten._softmax_backward_data,
    aten._log_softmax, aten._log_softmax_backward_data,
    aten.gelu, aten.gelu_backward, aten.elu, aten.elu_backward,
    aten.silu, aten.silu_backward, aten.leaky_relu, aten.leaky_relu_backward,
    aten.hardtanh, aten.hardtanh_backward, aten.softplus, aten.softplus_backward,
    aten.mish, aten.mish_backward, aten.glu, aten.glu_backward,
    aten.log_sigmoid_forward, aten.sigmoid_backward, aten.tanh_backward,
    aten.threshold_backward, aten.ldexp, aten._prelu_kernel, aten._prelu_kernel_backward,
    aten.embedding_dense_backward, aten.native_dropout, aten.baddbmm, aten.mv, aten.dot,
    aten.addcmul, aten.addcdiv, aten.var, aten.var_mean, aten.std,
    aten.norm, aten.linalg_vector_norm, aten.linalg_cross, aten.masked_fill, aten.rsub,
    aten.stack, aten.unbind, aten.roll, aten.avg_pool2d_backward, aten.upsample_nearest2d,
    aten.reflection_pad1d,
)  # fmt: skip
#: Operations that stay whole: the emitter does better than the formula of their decomposition.
_WHOLE = (
    aten.select_backward.default, aten.slice_backward.default, aten.var.correction,
    aten.sum.dim_IntList, aten.flip.default,
)  # fmt: skip
_RANDOM = ("rand", "bernoulli", "dropout", "normal", "multinomial", "poisson", "exponential")


def _trilinear(
    a: Tensor, b: Tensor, c: Tensor, more_a: list[int], more_b: list[int], more_c: list[int],
    dims: list[int], unroll_dim: int = 1,
) -> Tensor:  # fmt: skip
    """Products over three operands, of which each is broadcast along some dimensions."""
    operands = []
    for x, more in ((a, more_a), (b, more_b), (c, more_c)):
        for d in sorted(more):
            x = x.unsqueeze(d)
        operands.append(x)
    return (operands[0] * operands[1] * operands[2]).sum(dims)


def _weight_norm_backward(
    grad: Tensor, v: Tensor, g: Tensor, norms: Tensor, dim: int
) -> tuple[Tensor, Tensor]:
    """Of w = g v / |v|, the norm being over all dimensions but ``dim``."""
    dims = [d for d in range(v.ndim) if d != dim % v.ndim]
    norms = norms.reshape(g.shape)
    along = (grad * v).sum(dims, keepdim=True) / norms
    return g / norms * (grad - v * along / norms), along


def _shrink_backward(grad: Tensor, x: Tensor, width: float) -> Tensor:
    """Of softshrink and hardshrink, which are zero where |x| <= width."""
    return torch.where(x.abs() <= width, 0.0, grad)


def _table() -> dict[Any, Callable[..., Any]]:
    table = dict(core_aten_decompositions())
    table[aten._trilinear.default] = _trilinear
    table[aten._weight_norm_interface_backward.default] = _weight_norm_backward
    table[aten.softshrink_backward.default] = _shrink_backward
    table[aten.hardshrink_backward.default] = _shrink_backward
    for packet in _APART:
        table.update(get_decompositions([packet]))
    for each in _WHOLE:
        table.pop(each, None)
    return table


_DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {}


@dataclass(frozen=True)
class Traced:
    """``value``: (t, y, *inputs) -> (dy/dt,). ``vjp``: (t, y, g, *inputs) -> the gradients of y, t
    and of the first ``differentiable`` inputs, None where there is none. Shapes are those of one
    sample; outputs have the shape of y."""

    value: fx.GraphModule
    vjp: fx.GraphModule
    differentiable: int


def trace(
    call: Callable[..., Tensor],
    y: Tensor,
    t: Tensor,
    inputs: Sequence[Tensor],
    differentiable: int,
) -> Traced:
    """Traces ``call(t, y, *inputs)``, which evaluates the field for one sample.

    Args:
        call: called with t of shape [], y of one sample's shape and the tensors that the field
            holds; returns the derivative in y's shape.
        y, t: examples; only shape, dtype and device matter.
        inputs: the tensors that the field reads, differentiable ones first.

    Raises:
        NotCompilable: Python decides by a tensor's value, or the field changes what it is given,
            draws random numbers or uses what cannot be traced.
    """

    def value(t: Tensor, y: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (call(t, y, *inputs),)

    def vjp(t: Tensor, y: Tensor, g: Tensor, *inputs: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in (y, t, *inputs[:differentiable])]
            y, t, *first = leaves
            out = call(t, y, *first, *inputs[differentiable:])
            if not out.requires_grad:
                return (None,) * len(leaves)
            return tuple(torch.autograd.grad(out, leaves, g, allow_unused=True))

    given = [x.detach() for x in inputs]
    found = [
        graph_of(value, (t, y, *given)),
        graph_of(vjp, (t, y, torch.empty_like(y), *given)),
    ]
    return Traced(found[0], found[1], differentiable)


def graph_of(function: Callable[..., Any], arguments: tuple[Tensor, ...]) -> fx.GraphModule:
    """A function of tensors as a graph of core operations, in which nothing is computed twice.

    Raises:
        NotCompilable: as ``trace``.
    """
    if not _DECOMPOSITIONS:
        _DECOMPOSITIONS.update(_table())
    options = {"tracing_mode": "fake", "_allow_non_fake_inputs": True}
    try:
        with sdpa_kernel(SDPBackend.MATH), _no_autocast():
            # Autograd inside of a field must not see functional tensors: two passes.
            graph = make_fx(function, **options)(*arguments)
            graph = make_fx(
                functionalize(graph, remove="mutations"),
                decomposition_table=_DECOMPOSITIONS,
                **options,
            )(*arguments)
    except NotCompilable:
        raise
    except Exception as error:
        raise _explained(error) from error
    graph.graph.eliminate_dead_code()
    _check(graph)
    return fx.GraphModule(graph, _without_repetitions(graph.graph))


def _no_autocast() -> Any:
    return (
        torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext()
    )


def _explained(error: Exception) -> NotCompilable:
    text = str(error).split("\n")[0]
    kind = type(error).__name__
    if "DataDependent" in kind or "data-dependent" in text:
        return NotCompilable(
            "Python decides by the value of a tensor (if, float(), .item()); use torch.where or "
            "tensors instead",
            error,
        )
    if "in-place operation" in text or "inplace" in text.lower():
        return NotCompilable(
            "it changes the state that it is given in place; work on a copy", error
        )
    return NotCompilable(f"it cannot be traced: {text}", error)


def _check(graph: fx.GraphModule) -> None:
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        name = getattr(node.target, "__name__", str(node.target))
        if any(word in name for word in _RANDOM):
            raise NotCompilable(
                f"it draws random numbers ({node.target}), which would differ from call to call; "
                "draw them once per solve into a buffer",
                node,
            )


def _without_repetitions(graph: fx.Graph) -> fx.Graph:
    """The graph in which what is computed twice is computed once."""
    out = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    seen: dict[Any, fx.Node] = {}

    def hashable(x: Any) -> Any:
        if isinstance(x, (list, tuple)):
            return tuple(hashable(each) for each in x)
        if isinstance(x, dict):
            return tuple((name, hashable(value)) for name, value in sorted(x.items()))
        if isinstance(x, (bool, int, float)):
            return type(x), x
        return x

    for node in graph.nodes:
        copied = out.node_copy(node, lambda n: new[n])
        new[node] = copied
        if node.op != "call_function":
            continue
        key = node.target, hashable(copied.args), hashable(copied.kwargs)
        try:
            known = seen.setdefault(key, copied)
        except TypeError:
            continue
        if known is not copied:
            new[node] = known
            out.erase_node(copied)
    out.lint()
    return out
