"""interpolant: z_t = a z0 + b z1 and, stored or not, u = a' z0 + b' z1, in one pass, at times that
are passed or that the kernel draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fastnode.ops import dispatch

#: The dtypes in which coefficients are computed and kept.
ACCUMULATE = (torch.float32, torch.float64)
FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


_HALF = math.pi / 2
#: a, b, a', b' of the built-in paths by the number of their kind: linear, concave, convex.
BUILT_IN: tuple[tuple[Callable[[Tensor], Tensor], ...], ...] = (
    (lambda t: 1 - t, lambda t: t, lambda t: -torch.ones_like(t), torch.ones_like),
    (
        lambda t: torch.cos(_HALF * t),
        lambda t: torch.sin(_HALF * t),
        lambda t: -_HALF * torch.sin(_HALF * t),
        lambda t: _HALF * torch.cos(_HALF * t),
    ),
    (
        lambda t: 1 - torch.sin(_HALF * t),
        lambda t: 1 - torch.cos(_HALF * t),
        lambda t: -_HALF * torch.cos(_HALF * t),
        lambda t: _HALF * torch.sin(_HALF * t),
    ),
)

#: a, b, a', b' at B times: one tensor [4, B], or one [B] each in a graph that a compiler records,
#: where a stacked tensor would be stored; numbers there for what does not depend on the time.
Coefficients: TypeAlias = Tensor | tuple[Tensor | float, ...]
#: a' and b' of the linear path.
LINEAR_VELOCITY = (-1.0, 1.0)

_path_coefficients = dispatch.overload("path_coefficients")
_sampled_coefficients = dispatch.overload("sampled_coefficients")
_interpolant = dispatch.overload("interpolant")


def as_tensor(coef: Coefficients) -> Tensor:
    """[4, B]"""
    if isinstance(coef, Tensor):
        return coef
    rows = [x for x in coef if isinstance(x, Tensor)]
    return torch.stack([x if isinstance(x, Tensor) else torch.full_like(rows[0], x) for x in coef])


def combine(z0: Tensor, z1: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    """a z0 + b z1 with one coefficient a sample ([B]) or for all, in plain PyTorch."""
    if isinstance(a, float) and (a, b) == LINEAR_VELOCITY:
        # A compiler would multiply by these.
        return z1 - z0
    shape = (-1,) + (1,) * (z0.dim() - 1)
    first, second = (x.view(shape) if isinstance(x, Tensor) else x for x in (a, b))
    return (first * z0 + second * z1).to(z0.dtype)


def interpolant_reference(
    z0: Tensor, z1: Tensor, coef: Coefficients, store_target: bool
) -> tuple[Tensor, Tensor | None]:
    """What the op computes, in plain PyTorch. What is not stored needs no stand-in: autograd
    differentiates the loss by the end points themselves."""
    zt = combine(z0, z1, coef[0], coef[1])
    return zt, combine(z0, z1, coef[2], coef[3]) if store_target else None


def path_coefficients_reference(t: Tensor, kind: int, check: bool) -> Tensor:
    if check:
        check_time_range(t)
    return torch.stack([f(t) for f in BUILT_IN[kind]])


def check_time(t: Tensor) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"t must be a tensor of shape [B], got {type(t).__name__}")
    if not t.is_floating_point():
        raise TypeError(f"t must be floating, got {t.dtype}")
    if t.dim() != 1:
        raise ValueError(f"t must have shape [B], got {tuple(t.shape)}")


def check_time_range(t: Tensor) -> None:
    if torch.compiler.is_compiling():
        return
    if t.numel() and not bool(((t >= 0) & (t <= 1)).all()):
        low, high = t.min().item(), t.max().item()
        raise ValueError(
            f"t must lie in [0, 1], got values from {low:g} to {high:g}; "
            "extrapolate=True allows any t"
        )


def check_end_points(z0: Tensor, z1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    for name, z in (("z0", z0), ("z1", z1)):
        if not isinstance(z, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(z).__name__}")
        if z.dtype not in FLOATING:
            raise TypeError(f"{name} must be float32, float64, bfloat16 or float16, got {z.dtype}")
    check_time(t)
    if z0.dim() == 0 or z0.shape != z1.shape:
        raise ValueError(
            f"z0 and z1 must have one shape [B, ...], got {tuple(z0.shape)} and {tuple(z1.shape)}"
        )
    if t.shape[0] != z0.shape[0]:
        raise ValueError(f"t must have shape [{z0.shape[0]}] as z0 has, got {tuple(t.shape)}")
    if not z0.device == z1.device == t.device:
        raise ValueError(
            f"z0, z1 and t must share a device, got {z0.device}, {z1.device}, {t.device}"
        )
    if z0.dtype != z1.dtype:
        if not torch.is_autocast_enabled(z0.device.type):
            raise TypeError(f"z0 and z1 must share a dtype, got {z0.dtype} and {z1.dtype}")
        # As torch's own ops of several tensors do under autocast: the widest type wins.
        wide = torch.promote_types(z0.dtype, z1.dtype)
        z0, z1 = z0.to(wide), z1.to(wide)
    return z0, z1


def path_coefficients(t: Tensor, kind: int, check: bool) -> Tensor:
    """The coefficients a, b, a', b' of a built-in path at t [B] as one tensor [4, B]."""
    if dispatch.use_ops():
        return _path_coefficients(t, kind, check)
    return path_coefficients_reference(t, kind, check)


def interpolant(
    z0: Tensor, z1: Tensor, coef: Coefficients, store_target: bool
) -> tuple[Tensor, Tensor | None]:
    """z_t [B, ...] and the target velocity, or (not stored) its stand-in for autograd, which is
    None where plain PyTorch computes.

    coef holds a, b, a', b', float64 for float64 end points and float32 otherwise.
    """
    if dispatch.use_ops():
        return _interpolant(z0, z1, as_tensor(coef), store_target)
    return interpolant_reference(z0, z1, coef, store_target)


def _path_coefficients_any(t: Tensor, kind: int, check: bool) -> Tensor:
    if dispatch.use_triton(t):
        from fastnode.triton_kernels.interpolant import path_coefficients as launch

        return launch(t.contiguous(), kind, check)
    return path_coefficients_reference(t, kind, check)


_zeros: dict[tuple[torch.dtype, torch.device], Tensor] = {}


def _zero_like(z: Tensor) -> Tensor:
    """A zero seen as a tensor of z's shape: one for all calls, as to make it is a kernel."""
    key = z.dtype, z.device
    zero = _zeros.get(key)
    if zero is None:
        with torch.inference_mode(False):
            zero = torch.zeros((), dtype=z.dtype, device=z.device)
        # What a CUDA graph makes it fills at its replays only.
        if not (z.is_cuda and torch.cuda.is_current_stream_capturing()):
            _zeros[key] = zero
    return zero.expand_as(z)


def _interpolant_any(
    z0: Tensor, z1: Tensor, coef: Tensor, store_target: bool
) -> tuple[Tensor, Tensor]:
    if dispatch.use_triton(z0):
        from fastnode.triton_kernels.interpolant import interpolant as launch

        zt, ut = launch(z0.contiguous(), z1.contiguous(), coef.contiguous(), store_target)
    else:
        zt, ut = interpolant_reference(z0, z1, coef, store_target)
    return zt, _zero_like(z0) if ut is None else ut


def _interpolant_backward_any(
    grad_zt: Tensor | None,
    grad_target: Tensor | None,
    coef: Tensor,
    sign: float,
    need_z0: bool,
    need_z1: bool,
) -> tuple[Tensor, Tensor]:
    like = grad_zt if grad_zt is not None else grad_target
    assert like is not None
    none = like.new_empty(0)
    if dispatch.use_triton(like):
        from fastnode.triton_kernels.interpolant import interpolant_backward as launch

        dz0, dz1 = launch(
            None if grad_zt is None else grad_zt.contiguous(),
            None if grad_target is None else grad_target.contiguous(),
            coef.contiguous(),
            sign,
            need_z0,
            need_z1,
        )
    else:
        zero = torch.zeros((), dtype=like.dtype, device=like.device)
        x = zero.expand_as(like) if grad_zt is None else grad_zt
        y = zero.expand_as(like) if grad_target is None else grad_target
        dz0 = combine(x, y, coef[0], sign * coef[2]) if need_z0 else None
        dz1 = combine(x, y, coef[1], sign * coef[3]) if need_z1 else None
    return none if dz0 is None else dz0, none if dz1 is None else dz1


def _interpolant_fake(
    z0: Tensor, z1: Tensor, coef: Tensor, store_target: bool
) -> tuple[Tensor, Tensor]:
    zt = torch.empty_like(z0, memory_format=torch.contiguous_format)
    return zt, torch.empty_like(zt) if store_target else z0.new_empty(()).expand_as(z0)


def _interpolant_backward_fake(
    grad_zt: Tensor | None,
    grad_target: Tensor | None,
    coef: Tensor,
    sign: float,
    need_z0: bool,
    need_z1: bool,
) -> tuple[Tensor, Tensor]:
    like = grad_zt if grad_zt is not None else grad_target
    assert like is not None
    made = [
        torch.empty_like(like, memory_format=torch.contiguous_format) if need else like.new_empty(0)
        for need in (need_z0, need_z1)
    ]
    return made[0], made[1]


dispatch.register(
    "path_coefficients", _path_coefficients_any, lambda t, k, c: t.new_empty(4, t.shape[0])
)
dispatch.register("interpolant", _interpolant_any, _interpolant_fake)
dispatch.register("interpolant_backward", _interpolant_backward_any, _interpolant_backward_fake)


def samples_times(z0: Any, z1: Any) -> bool:
    """Whether `sampled_interpolant` takes these end points."""
    if not (type(z0) is type(z1) is Tensor and z0.dim() and z0.numel() and dispatch.use_ops()):
        return False
    alike = z0.shape == z1.shape and z0.dtype == z1.dtype and z0.device == z1.device
    return alike and z0.dtype in FLOATING


def sampled_interpolant(
    z0: Tensor, z1: Tensor, kind: int, zero_probability: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """t [B], coef [4, B], z_t like z0, and the stand-in that ``interpolant`` has.

    In the Triton kernel all follow from one number of the generator, which stays on the device. It
    draws 32 bits: too few for float64.
    """
    wide = torch.float64 if z0.dtype == torch.float64 else torch.float32
    if wide == torch.float32 and dispatch.use_triton(z0):
        seed = torch.randint(2**63 - 1, (), device=z0.device, generator=generator)
        op = torch.ops.fastnode.sampled_interpolant.default
        return op(z0, z1, seed, kind, zero_probability)
    draws = torch.rand(2, len(z0), device=z0.device, generator=generator, dtype=wide)
    t, coef = _sampled_coefficients(draws, kind, zero_probability)
    return t, coef, *_interpolant(z0, z1, coef, False)


def _sampled_coefficients_any(
    draws: Tensor, kind: int, zero_probability: float
) -> tuple[Tensor, Tensor]:
    t = torch.where(draws[1] < zero_probability, 0.0, draws[0])
    return t, _path_coefficients_any(t, kind, False)


dispatch.register(
    "sampled_coefficients",
    _sampled_coefficients_any,
    lambda u, k, p: (u.new_empty(u.shape[1]), u.new_empty(4, u.shape[1])),
)


def _sampled_forward(
    z0: Tensor, z1: Tensor, seed: Tensor, kind: int, zero_probability: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if dispatch.use_triton(z0):
        from fastnode.triton_kernels.interpolant import sampled_interpolant as launch

        t, coef, zt = launch(z0.contiguous(), z1.contiguous(), seed, kind, zero_probability)
        return t, coef, zt, _zero_like(z0)
    generator = torch.Generator(z0.device).manual_seed(int(seed))
    draws = torch.rand(2, z0.shape[0], device=z0.device, generator=generator)
    t, coef = _sampled_coefficients_any(draws, kind, zero_probability)
    zt, _ = interpolant_reference(z0, z1, coef, False)
    return t, coef, zt.contiguous(), z0.new_zeros(()).expand_as(z0)


def _sampled_fake(
    z0: Tensor, z1: Tensor, seed: Tensor, kind: int, zero_probability: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    t = z0.new_empty(z0.shape[0], dtype=torch.float32)
    zt = torch.empty_like(z0, memory_format=torch.contiguous_format)
    return t, t.new_empty(4, z0.shape[0]), zt, z0.new_empty(()).expand_as(z0)


def _sampled_setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[0], output[1])
    ctx.save_for_backward(output[1])


def _sampled_backward(
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
    _sampled_forward,
    _sampled_fake,
    (_sampled_backward, _sampled_setup_context),
)
