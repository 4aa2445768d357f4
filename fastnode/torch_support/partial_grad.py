"""Partial derivatives by autograd, of tensors that may depend on each other.

``torch.autograd.grad`` with respect to x and w returns the total derivative for w: where x was
computed from w, it includes the path through x. A backward pass must return partial derivatives, as
autograd itself adds the path through x later.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class PartialGradGates:
    """Identities through which no gradient flows until they are opened.

    An autograd graph is built from ``gates(x)`` and differentiated with respect to these; after
    ``open`` gradients flow through them, for second derivatives.
    """

    def __init__(self) -> None:
        self.closed = True

    def __call__(self, x: Any) -> Any:
        """x itself if it is not a tensor that requires a gradient."""
        if not isinstance(x, Tensor) or not x.requires_grad:
            return x
        return _PartialGradGate.apply(x, self)

    def open(self) -> None:
        self.closed = False


class _PartialGradGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gates: PartialGradGates) -> Tensor:
        ctx.gates = gates
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        return (None if ctx.gates.closed else grads[0]), None
