"""rk_adjoint: sum_j c_j x_j, the sum in the transpose of a Runge-Kutta step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastnode.ops import dispatch
from fastnode.ops.rk_stage import FLOATING, check_like


def rk_adjoint_reference(x: Sequence[Tensor], c: Sequence[float]) -> Tensor:
    """What the op computes, in plain PyTorch."""
    _check(x, c)
    wide = torch.promote_types(x[0].dtype, torch.float32)
    total = x[0].to(wide) * c[0]
    for each, weight in zip(x[1:], c[1:], strict=True):
        total = total + weight * each.to(wide)
    return total.to(x[0].dtype)


def rk_adjoint(x: Sequence[Tensor], c: Sequence[float]) -> Tensor:
    """sum_j c_j x_j in one pass.

    A step sums stage derivatives to states; its transpose sums cotangents to cotangents of stage
    derivatives (``fastnode.adjoints.discrete.step_transpose`` has the formula and its source).

    Args:
        x: tensors of one shape, floating or complex, at least one.
        c: their weights (numbers).

    Returns:
        Like x[0]; 16-bit floats are summed in float32 and rounded once, or once for every 32 of
        them.

    Raises:
        ValueError, TypeError: there is nothing to add, the tensors are not like each other, or x
            and c differ in length.
    """
    if x and x[0].dtype in FLOATING and dispatch.use_ops():
        return torch.ops.fastnode.rk_adjoint.default(x, c)
    return rk_adjoint_reference(x, c)


def _check(x: Sequence[Tensor], c: Sequence[float]) -> None:
    if not x or len(x) != len(c):
        raise ValueError(f"x and c must have one length of at least 1, got {len(x)} and {len(c)}")
    for each in x[1:]:
        check_like("each of x", each, x[0])


def _fake(x: Sequence[Tensor], c: Sequence[float]) -> Tensor:
    _check(x, c)
    return torch.empty_like(x[0], memory_format=torch.contiguous_format)


def _other_devices(x: Sequence[Tensor], c: Sequence[float]) -> Tensor:
    return rk_adjoint_reference(x, c).contiguous()


dispatch.register("rk_adjoint", _other_devices, _fake)
