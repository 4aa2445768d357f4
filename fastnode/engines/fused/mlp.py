"""Fields that declare themselves multilayer perceptrons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from fastnode import extension
from fastnode.errors import NotCompilable
from fastnode.torch_support.warn import warn

#: (weight, bias, column of the time or -1) of each layer, number of the activation.
Layers = list[tuple[Tensor, Tensor | None, int]]
Perceptron = tuple[Layers, int]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu,
    "gelu": F.gelu,
    "leaky_relu": F.leaky_relu,
    "relu": torch.relu,
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "sin": torch.sin,
    "softplus": F.softplus,
    "tanh": torch.tanh,
}
#: The numbers of csrc/mlp/simd/simd_kernels.h.
ACTIVATION_NUMBERS = {name: i for i, name in enumerate(ACTIVATIONS)}

#: Where the weight of a layer has the time's column.
TIMELESS, FIRST, LAST = -1, 0, -2


def read_layers(inside: list[nn.Module], layers: list[tuple[nn.Module, int]]) -> Layers | None:
    """What linear layers hold, each given with TIMELESS, FIRST or LAST; None unless calling each of
    ``inside`` is calling its class's forward and nothing else, and layers hold parameters."""
    if extension.AVAILABLE and not torch.compiler.is_compiling():
        # The same (csrc/bindings/read_layers.cpp), as every solve asks.
        return extension.native().read_layers(inside, layers)
    for module in inside:
        own = module.__dict__
        if (
            own["_forward_hooks"]
            or own["_forward_pre_hooks"]
            or own["_backward_hooks"]
            or own["_backward_pre_hooks"]
            or "forward" in own
        ):
            return None
    found: Layers = []
    for module, column in layers:
        held: Any = module._parameters
        weight = held.get("weight")
        if weight is None or "bias" not in held:
            return None
        found.append((weight, held["bias"], weight.shape[1] - 1 if column == LAST else column))
    return found


def read_chain(
    field: nn.Module, layers: dict[str, nn.Module], columns: dict[type[nn.Module], int]
) -> Layers | None:
    """The same of ``field`` and its layers, whose column is that of their class; None if a layer is
    of another class."""
    if extension.AVAILABLE and not torch.compiler.is_compiling():
        return extension.native().read_chain(field, layers, columns)
    parts = list(layers.values())
    if any(type(part) not in columns for part in parts):
        return None
    return read_layers([field, *parts], [(part, columns[type(part)]) for part in parts])


def why_not(func: Any, limits: str) -> str:
    """Why a field that declares itself a perceptron is none, or the limits of its engine."""
    return getattr(func, "why_not_fused", None) or limits


#: Numbers of activations are below, those of generated fields from here on (csrc/ops/mlp/layers.h).
FIRST_GENERATED = 1 << 16
#: What a solve is of: an MLP's layers and its activation, or the tensors that a generated field
#: holds and its number.
NativeField = tuple[Any, int]


def generated_field(func: Any, engine: str, *asked: Any) -> NativeField | None:
    """What ``func.native_field(*asked)`` gives; where no code can be made None with a warning,
    unless the engine was named or func must be compiled."""
    if torch.compiler.is_compiling() or _has_callbacks(func) or _has_any_global_hook():
        return None
    try:
        return func.native_field(*asked)
    except NotCompilable as error:
        if engine == "fused" or func.required:
            raise
        warn(f"{error}; the solve goes on natively")
        return None


def tensors(found: NativeField) -> list[Tensor]:
    """Weights and biases in the order of the layers, or what a generated field holds."""
    held, number = found
    if number >= FIRST_GENERATED:
        return held
    return [x for weight, bias, _ in held for x in (weight, bias) if x is not None]


def _has_callbacks(func: Any) -> bool:
    own = func.__dict__
    return "callback_step" in own or "callback_accept_step" in own or "callback_reject_step" in own


def perceptron(func: Any) -> Perceptron | None:
    """The layers and the activation of a field that declares itself a perceptron, or None."""
    declare = getattr(type(func), "perceptron", None)
    if declare is None or _has_any_global_hook():
        return None
    return None if _has_callbacks(func) else declare(func)
