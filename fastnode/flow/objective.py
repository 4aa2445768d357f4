"""The flow matching loss: how far a field is from the target velocity."""

from __future__ import annotations

import torch
from torch import Tensor

from fastnode.flow.paths import Target
from fastnode.ops import flow_loss as ops

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
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    if isinstance(target, Target):
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
