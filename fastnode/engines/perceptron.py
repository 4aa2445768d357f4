"""Fields that declare themselves multilayer perceptrons."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

#: (weight, bias, column of the time or -1) of each layer, number of the activation.
Layers = list[tuple[Tensor, Tensor | None, int]]
Perceptron = tuple[Layers, int]


def plain(*modules: nn.Module) -> bool:
    """Whether calling each of ``modules`` is calling its class's forward and nothing else. All in
    one call, as every solve asks."""
    for module in modules:
        own = module.__dict__
        if (
            own["_forward_hooks"]
            or own["_forward_pre_hooks"]
            or own["_backward_hooks"]
            or own["_backward_pre_hooks"]
            or "forward" in own
        ):
            return False
    return True


def perceptron(func: Any) -> Perceptron | None:
    """The layers and the activation of a field that declares itself a perceptron, or None."""
    declare = getattr(type(func), "perceptron", None)
    if declare is None or torch.nn.modules.module._has_any_global_hook():
        return None
    own = func.__dict__
    if "callback_step" in own or "callback_accept_step" in own or "callback_reject_step" in own:
        return None
    return declare(func)
