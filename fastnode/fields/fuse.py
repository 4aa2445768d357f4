"""From an ordinary ``forward(t, y)`` module to a field that the fused engine solves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.proxy import TraceError

from fastnode.engines.fused.mlp import (
    ACTIVATION_NUMBERS,
    ACTIVATIONS,
    FIRST,
    LAST,
    TIMELESS,
    Layers,
    read_layers,
    replaced_module,
)
from fastnode.fields.fuse_trace import Net, NotFusable, Reader, Tracer
from fastnode.nn.fields import MLPField

__all__ = ["FusedField", "NotFusable", "fuse"]


class FusedField(nn.Module):
    """A module and the perceptron in it; made by ``fuse``."""

    def __init__(self, module: nn.Module, net: Net):
        super().__init__()
        self.module = module
        self._activation = ACTIVATION_NUMBERS[net.activation]
        # Which module stood where: what is put in its place later is not what was read.
        self._places = [
            (parent._modules, name, child)
            for parent in module.modules()
            for name, child in parent._modules.items()
        ]
        self._inside = list(module.modules())
        columns = {None: TIMELESS, "first": FIRST, "last": LAST}
        self._layers = [(layer, columns[column]) for layer, column in net.layers]

    def forward(self, t: Tensor | float, y: Tensor) -> Tensor:
        return self.module(t, y)

    def perceptron(self) -> tuple[Layers, int] | None:
        """As MLPField.perceptron.

        Raises:
            ValueError: a module inside has been replaced since ``fuse`` read it.
        """
        name = replaced_module(self._places)
        if name is not None:
            raise ValueError(
                f"the module {name!r} of a fused field has been replaced since fastnode.fuse "
                "read it: call fuse again"
            )
        found = read_layers([self, *self._inside], self._layers)
        return None if found is None else (found, self._activation)


def fuse(module: Callable[..., Any]) -> Any:
    """A field with the parameters of ``module`` that is solved by the fused engine.

    ``module`` is an ordinary nn.Module with ``forward(t, y)``: 1 to 8 nn.Linear with one kind of
    activation between them (ELU, GELU, ReLU, sigmoid, SiLU, sine, softplus, tanh, as modules or as
    functions, with their default options), the time appended to the input of any of them by
    ``torch.cat`` along the last dimension, or nowhere. The result calls ``module`` and shares its
    parameters: train either. Solves with what the fused engine does not know run on other engines,
    as for any field.

    Args:
        module: what to fuse; an MLPField, which needs none, is returned as it is.

    Raises:
        NotFusable: ``module`` is something else; it names the first operation that stands in the
            way.
        TypeError: ``module`` is no nn.Module.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be an nn.Module, got {type(module).__name__}")
    if type(module) is MLPField:
        return module
    tracer = Tracer()
    try:
        graph = tracer.trace(module)
    except (TraceError, TypeError, RuntimeError, AttributeError, ValueError) as error:
        raise NotFusable(f"forward cannot be traced: {error}", str(error)) from error
    net = Reader(module, graph).read()
    fused = FusedField(module, net)
    _check(fused, ACTIVATIONS[net.activation])
    return fused


@torch.no_grad()
def _check(fused: FusedField, activate: Callable[[Tensor], Tensor]) -> None:
    """Compares what was read with what the module does, at one point."""
    layers, _ = fused.perceptron() or ([], 0)
    if not layers:
        raise NotFusable("a module inside has hooks or parametrisations", "hooks")
    first, _, column = layers[0]
    y = torch.randn(
        3,
        first.shape[1] - (column >= 0),
        dtype=first.dtype,
        device=first.device,
        generator=torch.Generator(first.device).manual_seed(0),
    )
    t = torch.tensor(0.37, dtype=first.dtype, device=first.device)
    try:
        expected = fused.module(t, y)
    except (RuntimeError, IndexError) as error:
        raise NotFusable(f"the module fails for a state [3, {y.shape[1]}]: {error}", "") from error
    z = y
    for i, (weight, bias, column) in enumerate(layers):
        if i:
            z = activate(z)
        if column >= 0:
            time = t.expand(3, 1)
            z = torch.cat([z[:, :column], time, z[:, column:]], dim=1)
        z = F.linear(z, weight, bias)
    if z.shape != expected.shape or not torch.allclose(z, expected, rtol=1e-4, atol=1e-5):
        raise NotFusable("the module returns something else than the perceptron in it", "forward")
