"""Error norms: the error of a step relative to the tolerances."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastnode.errors import InvalidValue
from fastnode.ops.rk_error import check_positive, rk_error, scaled_error
from fastnode.problem.ivp import Layout

Tolerance = float | Tensor


class ErrorNorm:
    """The norm of an error relative to ``atol + rtol |y|``; 1 is just acceptable.

    The norm of a single tensor is the root mean square over its elements, that of a tuple the
    largest such value of its tensors, both as in torchdiffeq. ``norm`` replaces that: it takes the
    scaled error in the caller's form (tensor or tuple) and returns a number. Messages put
    ``prefix`` before the names of the tolerances.
    """

    def __init__(
        self,
        layout: Layout,
        y0: Tensor,
        rtol: Any,
        atol: Any,
        norm: Callable[[Any], Any] | None = None,
        prefix: str = "",
    ):
        self.layout = layout
        self.norm = norm
        shapes = layout.shapes or (y0.shape,)
        self.rtol, self.atol = (
            [
                check_tolerance(n, v, s, y0)
                for n, v, s in _per_part(prefix + name, value, layout, shapes)
            ]
            for name, value in (("rtol", rtol), ("atol", atol))
        )
        self.sizes = [shape.numel() for shape in shapes]
        #: Root mean squares with numbers as tolerances: what kernels compute by themselves.
        self.plain = norm is None and not any(
            isinstance(tolerance, Tensor) for tolerance in (*self.rtol, *self.atol)
        )

    def for_steps(self) -> ErrorNorm:
        """Itself, for a method that chooses its steps by it.

        Raises:
            ValueError: rtol and atol are both 0 somewhere: no step has so small an error.
        """
        for rtol, atol in zip(self.rtol, self.atol, strict=True):
            check_positive(rtol, atol)
        return self

    @torch.no_grad()
    def __call__(
        self, y0: Tensor, y1: Tensor, k: Sequence[Tensor], weights: Sequence[float]
    ) -> float:
        """The norm of ``sum_j weights_j k_j`` for a step from y0 to y1."""
        if self.norm is None:
            return as_number(self.differentiable(y0, y1, k, weights))
        scaled = tuple(scaled_error(*each) for each in self._parts(y0, y1, k, weights))
        return norm_value(self.norm, scaled[0] if self.layout.shapes is None else scaled)

    def differentiable(
        self, y0: Tensor, y1: Tensor, k: Sequence[Tensor], weights: Sequence[float]
    ) -> Tensor:
        """The same as a 0-dim tensor with its gradient, for the norms defined here."""
        if self.layout.shapes is None:
            return rk_error(y0, y1, k, weights, self.rtol[0], self.atol[0])
        return torch.stack([rk_error(*each) for each in self._parts(y0, y1, k, weights)]).max()

    def _parts(
        self, y0: Tensor, y1: Tensor, k: Sequence[Tensor], weights: Sequence[float]
    ) -> list[tuple[Tensor, Tensor, list[Tensor], Sequence[float], Tolerance, Tolerance]]:
        """The arguments of rk_error for each tensor of the state."""
        if self.layout.shapes is None:
            return [(y0, y1, list(k), weights, self.rtol[0], self.atol[0])]
        # Numbers as tolerances need no shapes: flat parts suffice.
        apart = (lambda x: x.split(self.sizes)) if self.plain else self.layout.unpack
        parts = zip(*map(apart, (y0, y1, *k)), strict=True)
        return [
            (a, b, derivatives, weights, rtol, atol)
            for (a, b, *derivatives), rtol, atol in zip(parts, self.rtol, self.atol, strict=True)
        ]

    def size(self, x: Tensor, y: Tensor) -> float:
        """The norm of x relative to the tolerances at y."""
        return self(y, y, [x], [1.0])


def norm_value(norm: Callable[[Any], Any], error: Any) -> float:
    """The value of a norm of the caller's as a number."""
    value = norm(error)
    return abs(as_number(value) if isinstance(value, Tensor) else float(value))


def as_number(norm: Tensor) -> float:
    """The value of a 0-dim tensor; under torch.func.vmap the largest of the batch, so that one
    sequence of steps satisfies the tolerances of every sample."""
    functorch: Any = getattr(torch._C, "_functorch")  # noqa: B009, unknown to the stubs
    while functorch.is_functorch_wrapped_tensor(norm):
        norm = functorch.get_unwrapped(norm)
    return norm.max().item()


def _per_part(name: str, tolerance: Any, layout: Layout, shapes: Sequence[torch.Size]):
    """(name, tolerance, shape) for each tensor of the state."""
    is_sequence = isinstance(tolerance, (tuple, list)) or (
        isinstance(tolerance, Tensor) and tolerance.dim() > 0
    )
    if layout.shapes is None or not is_sequence:
        return [(name, tolerance, shape) for shape in shapes]
    if len(tolerance) != len(shapes):
        raise InvalidValue(
            f"{name} must have one entry for each of the {len(shapes)} tensors of y0, "
            f"got {len(tolerance)}"
        )
    named = enumerate(zip(tolerance, shapes, strict=True))
    return [(f"{name}[{i}]", value, shape) for i, (value, shape) in named]


def check_tolerance(name: str, value: Any, shape: torch.Size, y0: Tensor) -> Tolerance:
    if isinstance(value, (int, float)) and value >= 0:
        return float(value)
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(value).__name__
        raise TypeError(f"{name} must be a number or a tensor, got {kind}") from error
    if tensor.requires_grad:
        raise InvalidValue(f"{name} must not require a gradient")
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} must be real, got {tensor.dtype}")
    if not bool((tensor >= 0).all()):
        raise ValueError(f"{name} must not be negative or NaN, got {value}")
    if tensor.dim() == 0:
        return float(value)
    try:
        fits = torch.broadcast_shapes(tensor.shape, shape) == shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name} must broadcast to the state's shape {tuple(shape)}, got {tuple(tensor.shape)}"
        )
    wide = torch.promote_types(y0.dtype.to_real(), torch.float32)
    tensor = tensor.to(device=y0.device, dtype=wide)
    return tensor
