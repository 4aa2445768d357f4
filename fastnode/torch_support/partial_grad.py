"""Partial derivatives by autograd, of tensors that may depend on each other.

``torch.autograd.grad`` by x and by w gives w the total derivative: where x was computed from w,
that through x is in it. A backward pass must give partial ones, as autograd itself adds the way
through x later.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Gates:
    """The same tensors, past which no gradient flows until they are opened.

    A graph is built from ``gates(x)``, is differentiated by these, and may be differentiated once
    more after ``open``: second derivatives pass.
    """

    def __init__(self) -> None:
        self.closed = True

    def __call__(self, x: Any) -> Any:
        """x itself if it is no tensor or needs no gradient."""
        if not isinstance(x, Tensor) or not x.requires_grad:
            return x
        return _Gate.apply(x, self)

    def open(self) -> None:
        self.closed = False


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gates: Gates) -> Tensor:
        ctx.gates = gates
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        return (None if ctx.gates.closed else grads[0]), None
