"""rk_stage: y + sum_j c_j k_j, the state at which a Runge-Kutta method evaluates next."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def rk_stage_reference(y: Tensor, k: Sequence[Tensor], c: Sequence[float | Tensor]) -> Tensor:
    """What the op computes, in plain PyTorch. ``c`` may hold 0-dim tensors, which get gradients."""
    total = y
    for slope, weight in zip(k, c, strict=True):
        total = total + weight * slope
    return total


def rk_stage(y: Tensor, k: Sequence[Tensor], c: Sequence[float | Tensor]) -> Tensor:
    return rk_stage_reference(y, k, c)
