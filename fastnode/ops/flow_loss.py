"""flow_loss: the squared residual v - (a' z0 + b' z1), summed, and its gradient in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from fastnode.ops.interpolant import combine


def flow_loss_reference(v: Tensor, z0: Tensor, z1: Tensor, coef: Tensor, mean: bool) -> Tensor:
    """What the op computes, in plain PyTorch."""
    residual = v - combine(z0, z1, coef[2], coef[3])
    squared = residual.to(torch.promote_types(v.dtype, torch.float32)).square()
    return squared.mean() if mean else squared.sum()


def check_velocity(v: Tensor, like: Tensor) -> Tensor:
    if not isinstance(v, Tensor):
        raise TypeError(f"v must be a tensor, got {type(v).__name__}")
    if v.shape != like.shape:
        raise ValueError(f"v must have the target's shape {tuple(like.shape)}, got {tuple(v.shape)}")
    if v.device != like.device:
        raise ValueError(f"v must be on the target's device {like.device}, got {v.device}")
    if v.dtype != like.dtype:
        if not torch.is_autocast_enabled(v.device.type):
            raise TypeError(f"v must have the target's dtype {like.dtype}, got {v.dtype}")
        v = v.to(like.dtype)
    return v


def flow_loss(
    v: Tensor, stand_in: Tensor, z0: Tensor, z1: Tensor, coef: Tensor, mean: bool
) -> Tensor:
    return flow_loss_reference(v, z0, z1, coef, mean)
