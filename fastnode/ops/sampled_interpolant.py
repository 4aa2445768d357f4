"""sampled_interpolant: random times and the interpolant there, in one pass where kernels do it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastnode.ops import dispatch
from fastnode.ops.interpolant import (
    FLOATING,
    combine,
    interpolant_reference,
    path_coefficients_reference,
)


def runs_fused(z0: Any, z1: Any) -> bool:
    """Whether a kernel takes these end points. It draws 32 bits: too few for float64."""
    if not (type(z0) is type(z1) is Tensor and z0.dim() and z0.numel() and dispatch.use_ops()):
        return False
    alike = z0.shape == z1.shape and z0.dtype == z1.dtype and z0.device == z1.device
    return alike and z0.dtype in FLOATING and z0.dtype != torch.float64 and dispatch.use_triton(z0)


def sampled_interpolant(
    z0: Tensor, z1: Tensor, kind: int, zero_probability: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """t [B], coef [4, B], z_t like z0, and the stand-in that ``interpolant`` has.

    Their source is one number from the generator, which stays on the device.
    """
    seed = torch.randint(2**63 - 1, (), device=z0.device, generator=generator)
    op = torch.ops.fastnode.sampled_interpolant.default
    return op(z0, z1, seed, kind, zero_probability)


def _forward(
    z0: Tensor, z1: Tensor, seed: Tensor, kind: int, zero_probability: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if dispatch.use_triton(z0):
        from fastnode.triton_kernels.interpolant import sampled_interpolant as launch

        t, coef, zt = launch(z0.contiguous(), z1.contiguous(), seed, kind, zero_probability)
        return t, coef, zt, z0.new_zeros(()).expand_as(z0)
    generator = torch.Generator(z0.device).manual_seed(int(seed))
    draws = torch.rand(2, z0.shape[0], device=z0.device, generator=generator)
    t = torch.where(draws[1] < zero_probability, 0.0, draws[0])
    coef = path_coefficients_reference(t, kind, False)
    zt, stand_in = interpolant_reference(z0, z1, coef, False)
    return t, coef, zt.contiguous(), stand_in


def _fake(
    z0: Tensor, z1: Tensor, seed: Tensor, kind: int, zero_probability: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    t = z0.new_empty(z0.shape[0], dtype=torch.float32)
    zt = torch.empty_like(z0, memory_format=torch.contiguous_format)
    return t, t.new_empty(4, z0.shape[0]), zt, z0.new_empty(()).expand_as(z0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[0], output[1])
    ctx.save_for_backward(output[1])


def _backward(
    ctx: Any, _t: None, _coef: None, grad_zt: Tensor | None, grad_target: Tensor | None
) -> tuple[Tensor | None, ...]:
    need0, need1 = ctx.needs_input_grad[:2]
    (coef,) = ctx.saved_tensors
    if grad_zt is None and grad_target is None:
        return (None,) * 5
    if torch.is_grad_enabled():
        x, y = (0.0 if g is None else g for g in (grad_zt, grad_target))
        x, y = torch.broadcast_tensors(*map(torch.as_tensor, (x, y)))
        dz0, dz1 = combine(x, y, coef[0], -coef[2]), combine(x, y, coef[1], -coef[3])
    else:
        op = torch.ops.fastnode.interpolant_backward.default
        dz0, dz1 = op(grad_zt, grad_target, coef, -1.0, need0, need1)
    return dz0 if need0 else None, dz1 if need1 else None, None, None, None


dispatch.define(
    "sampled_interpolant(Tensor z0, Tensor z1, Tensor seed, int kind, float zero_probability)"
    " -> (Tensor t, Tensor coef, Tensor zt, Tensor stand_in)",
    _forward,
    _fake,
    (_backward, _setup_context),
)
