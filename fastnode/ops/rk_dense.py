"""rk_dense: y + sum_j c_ij k_j for every row i, the interpolant of one step at many times."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastnode.ops import dispatch
from fastnode.ops.rk_stage import FLOATING, check_terms, rk_stage_reference

_rk_dense = dispatch.overload("rk_dense")


def check_weights(k: Sequence[Tensor], c: Sequence[Sequence[float | Tensor]] | Tensor) -> None:
    if isinstance(c, Tensor):
        if c.dtype != torch.float64:
            raise TypeError(f"c must be float64, got {c.dtype}")
        if c.dim() != 2 or c.device.type != "cpu":
            raise ValueError(
                f"c must be a matrix [m, n] on the CPU, got shape {tuple(c.shape)} on {c.device}"
            )
        if c.shape[1] != len(k):
            raise ValueError(f"k and c must have one length, got {len(k)} and {c.shape[1]}")
        return
    for row in c:
        if len(row) != len(k):
            raise ValueError(f"k and each row of c must have one length, got {len(k)}, {len(row)}")


def rk_dense_reference(
    y: Tensor, k: Sequence[Tensor], c: Sequence[Sequence[float | Tensor]] | Tensor
) -> Tensor:
    """What the op computes, in plain PyTorch."""
    check_weights(k, c)
    if len(c) == 0:
        check_terms(k, k, y)
        return y.new_empty((0, *y.shape))
    rows = [row.unbind() for row in c.unbind()] if isinstance(c, Tensor) else c
    return torch.stack([rk_stage_reference(y, k, row) for row in rows])


def rk_dense(
    y: Tensor, k: Sequence[Tensor], c: Sequence[Sequence[float | Tensor]] | Tensor
) -> Tensor:
    """``stack([rk_stage(y, k, row) for row in c])`` in one pass over y and the stages.

    Args:
        y: state of any shape, floating or complex.
        k: n stages, each like y.
        c: weights [m, n], one row a result: numbers, a float64 tensor on the CPU, or rows with
            0-dim tensors where single weights need gradients (then plain PyTorch computes it).

    Returns:
        [m, *y.shape], summed in float32 for 16-bit floats and rounded once; each row is bit for
        bit what ``rk_stage`` gives for it.

    Raises:
        ValueError, TypeError: a stage is not like y, c is not a matrix with one column a stage,
            or a tensor c is not float64 or not on the CPU.
    """
    if y.dtype not in FLOATING or not dispatch.use_ops():
        return rk_dense_reference(y, k, c)
    if not isinstance(c, Tensor):
        if any(isinstance(weight, Tensor) for row in c for weight in row):
            return rk_dense_reference(y, k, c)
        check_weights(k, c)
        shape = (len(c), len(k))
        c = torch.tensor(c, dtype=torch.float64, device="cpu").view(shape)
    return _rk_dense(y, k, c)


def _fake(y: Tensor, k: Sequence[Tensor], c: Tensor) -> Tensor:
    check_weights(k, c)
    check_terms(k, k, y)
    return y.new_empty((c.shape[0], *y.shape))


dispatch.register("rk_dense", rk_dense_reference, _fake)
