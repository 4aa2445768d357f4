"""rk_stage: y + sum_j c_j k_j, the state at which a Runge-Kutta method evaluates next."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastnode.ops import dispatch

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_like(name: str, x: Tensor, like: Tensor) -> None:
    if x.shape != like.shape:
        raise ValueError(
            f"{name} must have the state's shape {tuple(like.shape)}, got {tuple(x.shape)}"
        )
    if x.dtype != like.dtype:
        raise TypeError(f"{name} must have the state's dtype {like.dtype}, got {x.dtype}")
    if x.device != like.device:
        raise ValueError(f"{name} must be on the state's device {like.device}, got {x.device}")


def check_terms(k: Sequence[Tensor], c: Sequence[float | Tensor], like: Tensor) -> None:
    if len(k) != len(c):
        raise ValueError(f"k and c must have one length, got {len(k)} and {len(c)}")
    for each in k:
        check_like("each of k", each, like)


def rk_stage_reference(y: Tensor, k: Sequence[Tensor], c: Sequence[float | Tensor]) -> Tensor:
    """What the op computes, in plain PyTorch: 16-bit floats are summed in float32."""
    check_terms(k, c, y)
    wide = torch.promote_types(y.dtype, torch.float32)
    return add_last(y.to(wide), [w * x.to(wide) for x, w in zip(k, c, strict=True)]).to(y.dtype)


def add_last(y: Tensor, terms: Sequence[Tensor]) -> Tensor:
    """y + (the sum of the terms): added to y one by one, each would be rounded as numbers of y's
    size are, and a step that is small beside y would lose digits at every stage."""
    if not terms:
        return y
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return y + total


def rk_stage(y: Tensor, k: Sequence[Tensor], c: Sequence[float | Tensor]) -> Tensor:
    """y + sum_j c_j k_j, y added last; summed in float32 for 16-bit floats and rounded once.

    Args:
        y: state of any shape, floating or complex.
        k: stages, each like y.
        c: one weight a stage: numbers, or 0-dim tensors where they need gradients (then plain
            PyTorch computes the sum).

    Raises:
        ValueError, TypeError: a stage is not like y, or k and c differ in length.
    """
    weights_are_numbers = not (c and isinstance(c[0], Tensor))
    if weights_are_numbers and y.dtype in FLOATING and dispatch.use_ops():
        return torch.ops.fastnode.rk_stage.default(y, k, c)
    return rk_stage_reference(y, k, c)


def _fake(y: Tensor, k: Sequence[Tensor], c: Sequence[float]) -> Tensor:
    check_terms(k, c, y)
    return torch.empty_like(y, memory_format=torch.contiguous_format)


def _other_devices(y: Tensor, k: Sequence[Tensor], c: Sequence[float]) -> Tensor:
    # A new tensor even where there is nothing to add: ops must not alias their input.
    return rk_stage_reference(y, k, c).clone(memory_format=torch.contiguous_format)


dispatch.register("rk_stage", _other_devices, _fake)
