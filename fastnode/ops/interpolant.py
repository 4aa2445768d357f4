"""interpolant: z_t = a z0 + b z1 and, stored or not, u = a' z0 + b' z1, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def combine(z0: Tensor, z1: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a z0 + b z1 with one coefficient a sample ([B]), in plain PyTorch."""
    shape = (-1,) + (1,) * (z0.dim() - 1)
    return (a.view(shape) * z0 + b.view(shape) * z1).to(z0.dtype)


def interpolant_reference(
    z0: Tensor, z1: Tensor, coef: Tensor, store_target: bool
) -> tuple[Tensor, Tensor]:
    """What the op computes, in plain PyTorch."""
    zt = combine(z0, z1, coef[0], coef[1])
    if store_target:
        return zt, combine(z0, z1, coef[2], coef[3])
    return zt, z0.new_zeros(()).expand_as(z0)


def path_coefficients_reference(t: Tensor, kind: int, check: bool) -> Tensor:
    from fastnode.flow.paths import PATHS

    path = next(p for p in PATHS.values() if p._kind == kind)()
    if check:
        check_time_range(t)
    return torch.stack([f(t) for f in (path.alpha, path.beta, path.dalpha, path.dbeta)])


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
            "z0 and z1 must have one shape [B, ...], "
            f"got {tuple(z0.shape)} and {tuple(z1.shape)}"
        )
    if t.shape[0] != z0.shape[0]:
        raise ValueError(f"t must have shape [{z0.shape[0]}] as z0 has, got {tuple(t.shape)}")
    if not z0.device == z1.device == t.device:
        raise ValueError(f"z0, z1 and t must share a device, got {z0.device}, {z1.device}, {t.device}")
    if z0.dtype != z1.dtype:
        if not torch.is_autocast_enabled(z0.device.type):
            raise TypeError(f"z0 and z1 must share a dtype, got {z0.dtype} and {z1.dtype}")
        # As torch's own ops of several tensors do under autocast: the widest type wins.
        wide = torch.promote_types(z0.dtype, z1.dtype)
        z0, z1 = z0.to(wide), z1.to(wide)
    return z0, z1


def path_coefficients(t: Tensor, kind: int, check: bool) -> Tensor:
    return path_coefficients_reference(t, kind, check)


def interpolant(
    z0: Tensor, z1: Tensor, coef: Tensor, store_target: bool
) -> tuple[Tensor, Tensor]:
    return interpolant_reference(z0, z1, coef, store_target)
