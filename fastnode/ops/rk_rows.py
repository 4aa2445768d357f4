"""rk_stage, rk_error and rk_dense for per-sample stepping.

Each sample (index of the first dimension) has its own step, tolerances and time: float64 tensors of
shape [B] on the state's device. They are constants to the ops: where one of them needs gradients,
plain PyTorch computes the result.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastnode.ops import dispatch
from fastnode.ops.rk_error import root_mean_square, scaled_error
from fastnode.ops.rk_stage import FLOATING, add_last, check_like, check_terms

_rk_stage_rows = dispatch.overload("rk_stage_rows")
_rk_error_rows = dispatch.overload("rk_error_rows")
_rk_dense_rows = dispatch.overload("rk_dense_rows")


def check_samples(y: Tensor) -> None:
    if y.dim() == 0:
        raise ValueError("the state must have shape [B, ...], got a scalar")


def check_rows(name: str, x: Tensor, y: Tensor, shape: tuple[int, ...]) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.dtype != torch.float64:
        raise TypeError(f"{name} must be float64, got {x.dtype}")
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(x.shape)}")
    if x.device != y.device:
        raise ValueError(f"{name} must be on the state's device {y.device}, got {x.device}")


def check_tolerances(rtol: float | Tensor, atol: float | Tensor, y: Tensor) -> None:
    for name, x in (("rtol", rtol), ("atol", atol)):
        if isinstance(x, Tensor):
            check_rows(name, x, y, y.shape[:1] if x.dim() else ())


def _column(x: Tensor, y: Tensor) -> Tensor:
    """A number a sample, in the type of y's sums and shaped to broadcast to y."""
    wide = torch.promote_types(y.dtype, torch.float32)
    # torch.compile cannot trace to_real.
    return x.to(wide.to_real() if wide.is_complex else wide).view(-1, *(1,) * (y.dim() - 1))


def rk_stage_rows_reference(
    y: Tensor, k: Sequence[Tensor], c: Sequence[float], h: Tensor
) -> Tensor:
    """What the op computes, in plain PyTorch."""
    check_samples(y)
    check_terms(k, c, y)
    check_rows("h", h, y, y.shape[:1])
    wide = torch.promote_types(y.dtype, torch.float32)
    total = torch.zeros_like(y, dtype=wide)
    for derivative, weight in zip(k, c, strict=True):
        total = total + weight * derivative.to(wide)
    return (y.to(wide) + _column(h, y) * total).to(y.dtype)


def rk_stage_rows(y: Tensor, k: Sequence[Tensor], c: Sequence[float], h: Tensor) -> Tensor:
    """y_b + h_b sum_j c_j k_jb for every sample b.

    Args:
        y: states [B, ...], floating or complex.
        k, c: stages, each like y, and their weights (numbers).
        h: step of each sample, float64 [B].

    Returns:
        Like y; summed in float32 for 16-bit floats and rounded once.

    Raises:
        ValueError, TypeError: a stage is not like y, k and c differ in length, or h is not a
            float64 tensor [B] on y's device.
    """
    if y.dtype in FLOATING and dispatch.use_ops() and not _needs_gradient(h):
        return _rk_stage_rows(y, k, c, h)
    return rk_stage_rows_reference(y, k, c, h)


def rk_error_rows_reference(
    y0: Tensor,
    y1: Tensor,
    k: Sequence[Tensor],
    c: Sequence[float],
    h: Tensor,
    rtol: float | Tensor,
    atol: float | Tensor,
) -> Tensor:
    """What the op computes, in plain PyTorch."""
    check_samples(y0)
    check_rows("h", h, y0, y0.shape[:1])
    check_tolerances(rtol, atol, y0)
    rtol, atol = (_column(x, y0) if isinstance(x, Tensor) else x for x in (rtol, atol))
    ratio = _column(h, y0) * scaled_error(y0, y1, k, c, rtol, atol)
    return root_mean_square(ratio, per_sample=True)


def rk_error_rows(
    y0: Tensor,
    y1: Tensor,
    k: Sequence[Tensor],
    c: Sequence[float],
    h: Tensor,
    rtol: float | Tensor,
    atol: float | Tensor,
) -> Tensor:
    """sqrt(mean(((h_b sum_j c_j k_jb) / (atol_b + rtol_b max(|y0_b|, |y1_b|)))^2)).

    Source: as for ``rk_error``, with a mean for each sample b.

    Args:
        y0, y1: states before and after the step, [B, ...].
        k, c: stages, each like y0, and their weights in the error (numbers).
        h: step of each sample, float64 [B].
        rtol, atol: numbers, or float64 tensors of shape [B] or [].

    Returns:
        [B]; float64 for float64 and complex128 states, otherwise float32. 0 for samples without
        an element.

    Raises:
        ValueError, TypeError: y1 or a stage is not like y0, k and c differ in length, or h, rtol
            or atol is not float64, has another shape or is on another device.
    """
    if y0.dtype not in FLOATING or not dispatch.use_ops() or _needs_gradient(h, rtol, atol):
        return rk_error_rows_reference(y0, y1, k, c, h, rtol, atol)
    tolerances = [
        x if isinstance(x, Tensor) else y0.new_full((), x, dtype=torch.float64)
        for x in (rtol, atol)
    ]
    return _rk_error_rows(y0, y1, k, c, h, *tolerances)


def rk_dense_rows_reference(y: Tensor, k: Sequence[Tensor], w: Tensor) -> Tensor:
    """What the op computes, in plain PyTorch."""
    check_samples(y)
    check_terms(k, k, y)
    check_rows("w", w, y, (y.shape[0], len(k)))
    wide = torch.promote_types(y.dtype, torch.float32)
    pairs = zip(k, w.unbind(1), strict=True)
    return add_last(y.to(wide), [_column(each, y) * x.to(wide) for x, each in pairs]).to(y.dtype)


def rk_dense_rows(y: Tensor, k: Sequence[Tensor], w: Tensor) -> Tensor:
    """y_b + sum_j w_bj k_jb for every sample b: its interpolant at its time.

    Args:
        y: states [B, ...], floating or complex.
        k: n stages, each like y.
        w: weights, float64 [B, n] on y's device.

    Returns:
        Like y; each sample is bit for bit what ``rk_stage`` gives for it.

    Raises:
        ValueError, TypeError: a stage is not like y, or w is not a float64 tensor [B, n] on y's
            device.
    """
    if y.dtype in FLOATING and dispatch.use_ops() and not _needs_gradient(w):
        return _rk_dense_rows(y, k, w)
    return rk_dense_rows_reference(y, k, w)


def _needs_gradient(*numbers: object) -> bool:
    return any(isinstance(x, Tensor) and x.requires_grad for x in numbers)


def _fake_stage_rows(y: Tensor, k: Sequence[Tensor], c: Sequence[float], h: Tensor) -> Tensor:
    check_samples(y)
    check_terms(k, c, y)
    check_rows("h", h, y, y.shape[:1])
    return torch.empty_like(y, memory_format=torch.contiguous_format)


def _fake_error_rows(
    y0: Tensor,
    y1: Tensor,
    k: Sequence[Tensor],
    c: Sequence[float],
    h: Tensor,
    rtol: Tensor,
    atol: Tensor,
) -> Tensor:
    check_samples(y0)
    check_like("y1", y1, y0)
    check_terms(k, c, y0)
    check_rows("h", h, y0, y0.shape[:1])
    check_tolerances(rtol, atol, y0)
    return y0.new_empty(y0.shape[:1], dtype=torch.promote_types(y0.dtype, torch.float32))


def _fake_dense_rows(y: Tensor, k: Sequence[Tensor], w: Tensor) -> Tensor:
    check_samples(y)
    check_terms(k, k, y)
    check_rows("w", w, y, (y.shape[0], len(k)))
    return torch.empty_like(y, memory_format=torch.contiguous_format)


def _other_stage_rows(y: Tensor, k: Sequence[Tensor], c: Sequence[float], h: Tensor) -> Tensor:
    return rk_stage_rows_reference(y, k, c, h).contiguous()


def _other_dense_rows(y: Tensor, k: Sequence[Tensor], w: Tensor) -> Tensor:
    # A new tensor even where there is nothing to add: ops must not alias their input.
    return rk_dense_rows_reference(y, k, w).clone(memory_format=torch.contiguous_format)


dispatch.register("rk_stage_rows", _other_stage_rows, _fake_stage_rows)
dispatch.register("rk_error_rows", rk_error_rows_reference, _fake_error_rows)
dispatch.register("rk_dense_rows", _other_dense_rows, _fake_dense_rows)
