"""rk_error: the embedded error of a step, scaled by the tolerances, as a root mean square."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastnode.ops import dispatch
from fastnode.ops.rk_stage import FLOATING, check_like, check_terms


def scaled_error(
    y0: Tensor,
    y1: Tensor,
    k: Sequence[Tensor],
    c: Sequence[float],
    rtol: float | Tensor,
    atol: float | Tensor,
) -> Tensor:
    """Each element's error over its tolerance, in plain PyTorch, at least in float32."""
    check_like("y1", y1, y0)
    check_terms(k, c, y0)
    wide = torch.promote_types(y0.dtype, torch.float32)
    error = torch.zeros_like(y0, dtype=wide)
    for derivative, weight in zip(k, c, strict=True):
        error = error + weight * derivative.to(wide)
    return error / (atol + rtol * torch.maximum(y0.to(wide).abs(), y1.to(wide).abs()))


def check_positive(rtol: float | Tensor, atol: float | Tensor) -> None:
    """Raises ValueError where both tolerances are 0, so that no error can be measured by them."""
    if isinstance(rtol, Tensor) or isinstance(atol, Tensor):
        positive = bool((torch.as_tensor(rtol) + torch.as_tensor(atol) > 0).all())
    else:
        positive = rtol > 0 or atol > 0
    if not positive:
        raise ValueError("rtol and atol must not both be 0: no step has an error within them")


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
    _check_samples(y0, per_sample)
    return root_mean_square(scaled_error(y0, y1, k, c, rtol, atol), per_sample)


def root_mean_square(ratio: Tensor, per_sample: bool) -> Tensor:
    size = math.prod(ratio.shape[1:]) if per_sample else ratio.numel()
    rows = ratio.reshape(-1, size) if per_sample and size else ratio.reshape(1, -1)
    norm = torch.linalg.vector_norm(rows, dim=1) / max(size, 1) ** 0.5
    if not per_sample:
        return norm[0]
    return norm if size else norm.expand(ratio.shape[0]).clone()


def rk_error(
    y0: Tensor,
    y1: Tensor,
    k: Sequence[Tensor],
    c: Sequence[float],
    rtol: float | Tensor,
    atol: float | Tensor,
    per_sample: bool = False,
) -> Tensor:
    """sqrt(mean(((sum_j c_j k_j) / (atol + rtol max(|y0|, |y1|)))^2)) in one pass.

    Source: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, section II.4,
    equations (4.10) and (4.11).

    Args:
        y0, y1: states before and after the step, [B, ...] or any shape for the joint norm.
        k, c: stages, each like y0, and their weights in the error (numbers).
        rtol, atol: numbers, or tensors that broadcast to y0 (then plain PyTorch computes it).
        per_sample: a mean for each index of the first dimension, or one over all elements.

    Returns:
        [B] or a scalar; float64 for float64 and complex128 states, otherwise float32. 0 where
        there is no element.

    Raises:
        ValueError, TypeError: y1 or a stage is not like y0, k and c differ in length, or
            per_sample is asked of a scalar.
    """
    numbers = not (isinstance(rtol, Tensor) or isinstance(atol, Tensor))
    if numbers and y0.dtype in FLOATING and dispatch.use_ops():
        return torch.ops.fastnode.rk_error.default(y0, y1, k, c, rtol, atol, per_sample)
    return rk_error_reference(y0, y1, k, c, rtol, atol, per_sample)


def _check_samples(y0: Tensor, per_sample: bool) -> None:
    if per_sample and y0.dim() == 0:
        raise ValueError("per_sample needs a state of shape [B, ...], got a scalar")


def _fake(
    y0: Tensor,
    y1: Tensor,
    k: Sequence[Tensor],
    c: Sequence[float],
    rtol: float,
    atol: float,
    per_sample: bool,
) -> Tensor:
    check_like("y1", y1, y0)
    check_terms(k, c, y0)
    _check_samples(y0, per_sample)
    shape = y0.shape[:1] if per_sample else ()
    return y0.new_empty(shape, dtype=torch.promote_types(y0.dtype, torch.float32))


dispatch.register("rk_error", rk_error_reference, _fake)
