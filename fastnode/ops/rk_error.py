"""rk_error: the embedded error of a step, scaled by the tolerances, as a root mean square."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def scaled_error(
    y0: Tensor,
    y1: Tensor,
    k: Sequence[Tensor],
    c: Sequence[float],
    rtol: float | Tensor,
    atol: float | Tensor,
) -> Tensor:
    """Each element's error over its tolerance, in plain PyTorch, at least in float32."""
    wide = torch.promote_types(y0.dtype, torch.float32)
    error = sum(weight * slope.to(wide) for slope, weight in zip(k, c, strict=True))
    return error / (atol + rtol * torch.maximum(y0.abs(), y1.abs()).to(wide.to_real()))


def rk_error_reference(
    y0: Tensor,
    y1: Tensor,
    k: Sequence[Tensor],
    c: Sequence[float],
    rtol: float | Tensor,
    atol: float | Tensor,
    per_sample: bool = False,
) -> Tensor:
    """What the op computes, in plain PyTorch."""
    ratio = scaled_error(y0, y1, k, c, rtol, atol)
    rows = ratio.reshape(ratio.shape[0], -1) if per_sample else ratio.reshape(1, -1)
    norm = torch.linalg.vector_norm(rows, dim=1) / max(rows.shape[1], 1) ** 0.5
    return norm if per_sample else norm[0]


def rk_error(
    y0: Tensor,
    y1: Tensor,
    k: Sequence[Tensor],
    c: Sequence[float],
    rtol: float | Tensor,
    atol: float | Tensor,
    per_sample: bool = False,
) -> Tensor:
    return rk_error_reference(y0, y1, k, c, rtol, atol, per_sample)
