"""flow_loss: the squared residual v - (a' z0 + b' z1), summed, and its gradient in one pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnode.ops import dispatch
from fastnode.ops.interpolant import Coefficients, as_tensor, combine

_flow_loss = dispatch.overload("flow_loss")


def flow_loss_reference(
    v: Tensor, z0: Tensor, z1: Tensor, coef: Coefficients, mean: bool
) -> Tensor:
    """What the op computes, in plain PyTorch: 16-bit floats are subtracted in float32."""
    wide = torch.promote_types(v.dtype, torch.float32)
    velocity = combine(z0.to(wide), z1.to(wide), coef[2], coef[3])
    squared = (v.to(wide) - velocity).square()
    return squared.mean() if mean else squared.sum()


def check_velocity(v: Tensor, like: Tensor) -> Tensor:
    if not isinstance(v, Tensor):
        raise TypeError(f"v must be a tensor, got {type(v).__name__}")
    if v.shape != like.shape:
        raise ValueError(
            f"v must have the target's shape {tuple(like.shape)}, got {tuple(v.shape)}"
        )
    if v.device != like.device:
        raise ValueError(f"v must be on the target's device {like.device}, got {v.device}")
    if v.dtype != like.dtype:
        if not torch.is_autocast_enabled(v.device.type):
            raise TypeError(f"v must have the target's dtype {like.dtype}, got {v.dtype}")
        v = v.to(like.dtype)
    return v


def flow_loss(
    v: Tensor, stand_in: Tensor | None, z0: Tensor, z1: Tensor, coef: Coefficients, mean: bool
) -> Tensor:
    """The scalar loss; the gradient for z0, z1 and coef flows through the stand-in, or without one
    through themselves."""
    if stand_in is None or not dispatch.use_ops():
        return flow_loss_reference(v, z0, z1, coef, mean)
    with_grad = torch.is_grad_enabled() and (v.requires_grad or stand_in.requires_grad)
    return _flow_loss(v, stand_in, z0, z1, as_tensor(coef), mean, with_grad)[0]


def squared_error(x: Tensor, target: Tensor) -> Tensor:
    """The mean of (x - target)**2, both of one shape [B, ...] and of float32 or float64.

    On a CPU by the op, whose code the flow loss has just used: a second loss with code of its own
    costs 4 % of the step of a small network.
    """
    if not (x.is_cpu and dispatch.use_ops()):
        return F.mse_loss(x, target)
    with_grad = torch.is_grad_enabled() and (x.requires_grad or target.requires_grad)
    minus_target = -target if target.requires_grad else target
    return _flow_loss(x, minus_target, target, None, None, True, with_grad)[0]


def loss_derivatives(dtype: torch.dtype, numel: int, mean: bool) -> tuple[float, float]:
    """d loss / d v and the op's grad, both as multiples of the residual.

    In float16 grad is the residual itself: the small factor of a mean could flush it to zero (as in
    csrc/ops/flow_loss.cpp).
    """
    derivative = (2 / numel if numel else float("inf")) if mean else 2.0
    return derivative, 1.0 if dtype == torch.float16 else derivative


def _flow_loss_any(
    v: Tensor,
    stand_in: Tensor,
    z0: Tensor,
    z1: Tensor | None,
    coef: Tensor | None,
    mean: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor]:
    derivative, grad_scale = loss_derivatives(v.dtype, v.numel(), mean)
    if z1 is None or coef is None:
        # z0 is the target itself.
        wide = torch.promote_types(v.dtype, torch.float32)
        residual = v.to(wide) - z0.to(wide)
        loss = residual.square().mean() if mean else residual.square().sum()
        grad = residual.mul_(grad_scale).to(v.dtype).contiguous() if with_grad else v.new_empty(0)
        return loss, grad
    if dispatch.use_triton(v):
        from fastnode.triton_kernels.flow_loss import flow_loss as launch

        v, z0, z1, coef = v.contiguous(), z0.contiguous(), z1.contiguous(), coef.contiguous()
        loss, grad = launch(v, z0, z1, coef, derivative / 2, grad_scale, with_grad)
        return loss, v.new_empty(0) if grad is None else grad
    loss = flow_loss_reference(v, z0, z1, coef, mean)
    if not with_grad:
        return loss, v.new_empty(0)
    residual = v - combine(z0, z1, coef[2], coef[3])
    return loss, residual.mul_(grad_scale).contiguous()


def _flow_loss_fake(
    v: Tensor,
    stand_in: Tensor,
    z0: Tensor,
    z1: Tensor | None,
    coef: Tensor | None,
    mean: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor]:
    loss = v.new_empty((), dtype=torch.promote_types(v.dtype, torch.float32))
    if not with_grad:
        return loss, v.new_empty(0)
    return loss, torch.empty_like(v, memory_format=torch.contiguous_format)


def _scale_any(x: Tensor, factor: Tensor) -> None:
    if dispatch.use_triton(x):
        from fastnode.triton_kernels.flow_loss import scale_ as launch

        launch(x, factor)
    else:
        x.mul_(factor)


dispatch.register("flow_loss", _flow_loss_any, _flow_loss_fake)
dispatch.register("scale_", _scale_any, lambda x, factor: None)
