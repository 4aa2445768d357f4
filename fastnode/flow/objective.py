"""The flow matching loss: how far a field is from the target velocity."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnode.flow.paths import Target
from fastnode.ops import flow_loss as ops
from fastnode.ops import linear_flow_loss as linear_ops
from fastnode.ops.flow_in_graph import loss_in_graph

REDUCTIONS = ("mean", "sum", "none")


def flow_loss(v: Tensor, target: Target | Tensor, reduction: str = "mean") -> Tensor:
    """Squared distance between a field's velocity and the target velocity.

    Equivalent to ``((v - target.velocity()) ** 2).mean()``, without making the velocity, and with
    the gradient for v computed in the same pass.

    Args:
        v: velocities, the shape, dtype and device of the path's end points.
        target: from :meth:`Path.interpolate`, or a stored velocity as :meth:`Path.sample` gives.
        reduction: ``mean`` or ``sum`` over all elements, or ``none``.

    Returns:
        A scalar, summed in float32 (float64 for float64) and of that dtype; the shape and dtype of
        v for ``none``. Differentiable to any order in v and in what the target is made of.

    Raises:
        ValueError: shapes or devices differ, or the reduction is unknown.
        TypeError: dtypes differ.

    Source: Kim, Yoo et al., NeurIPS 2024, arXiv 2410.22918, section 3 (flow loss).
    """
    loss = loss_in_graph(v, target, reduction)
    if loss is not None:
        return loss
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    if isinstance(target, Target):
        target.check_unchanged()
        v = ops.check_velocity(v, target.z0)
        if reduction != "none":
            return ops.flow_loss(
                v, target.stand_in, target.z0, target.z1, target.coef, reduction == "mean"
            )
        velocity = target.velocity()
    elif isinstance(target, Tensor):
        v, velocity = ops.check_velocity(v, target), target
    else:
        raise TypeError(f"target must be a Target or a Tensor, got {type(target).__name__}")
    residual = v - velocity
    if reduction == "none":
        return residual.square()
    total = residual.to(torch.promote_types(v.dtype, torch.float32)).square()
    return total.mean() if reduction == "mean" else total.sum()


def linear_flow_loss(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Target | Tensor,
    reduction: str = "mean",
) -> Tensor:
    """The flow loss of a field whose last layer is linear, from that layer's input.

    Equivalent to ``flow_loss(torch.nn.functional.linear(h, weight, bias), target, reduction)``. On
    a GPU with Triton the layer's output is not stored: the loss and the residual, which every
    gradient needs, come out of the matrix product. That is for a :class:`Target`, states [B, D] of
    bfloat16, float16, or float32 where TF32 is allowed, and rows that are multiples of 16 bytes;
    in all other cases, and on other devices, the two run one after the other.

    Args:
        h: the layer's input, [B, ..., K].
        weight, bias: of the layer, [D, K] and [D] or None.
        target, reduction: as in :func:`flow_loss`, for velocities [B, ..., D].

    Returns:
        As :func:`flow_loss`. Differentiable to any order in h, weight, bias and in what the target
        is made of.

    Raises:
        ValueError: shapes or devices differ, or the reduction is unknown.
        TypeError: dtypes differ.

    Source: as for :func:`flow_loss`.
    """
    if isinstance(target, Target) and reduction in ("mean", "sum"):
        z0, z1 = target.z0, target.z1
        x, w, b = h, weight, bias
        if torch.is_autocast_enabled(z0.device.type):
            x, w, b = h.to(z0.dtype), weight.to(z0.dtype), None if bias is None else bias.to(z0)
        stand_in, coef = target.stand_in, target.coef
        if stand_in is not None and linear_ops.runs_fused(x, w, b, z0):
            target.check_unchanged()
            _check_layer(x, w, b, z0)
            coef, mean = ops.as_tensor(coef), reduction == "mean"
            return linear_ops.linear_flow_loss(x, w, b, stand_in, z0, z1, coef, mean)
    return flow_loss(F.linear(h, weight, bias), target, reduction)


def _check_layer(h: Tensor, weight: Tensor, bias: Tensor | None, z0: Tensor) -> None:
    inputs = h.shape[1]
    expected = [
        ("h", h, (z0.shape[0], inputs)),
        ("weight", weight, (z0.shape[1], inputs)),
        ("bias", bias, z0.shape[1:]),
    ]
    for name, x, shape in expected:
        if x is None:
            continue
        if x.shape != shape:
            raise ValueError(
                f"{name} must have shape {tuple(shape)} for a target {tuple(z0.shape)}, got "
                f"{tuple(x.shape)}"
            )
        if x.device != z0.device:
            raise ValueError(f"{name} must be on the target's device {z0.device}, got {x.device}")
