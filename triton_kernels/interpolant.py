"""Interpolant z_t = a z0 + b z1 and its velocity u = a' z0 + b' z1, one pass for each direction."""

import torch
import triton
import triton.language as tl

from .tiling import (
    WARPS,
    ceil_div,
    choose_tiling,
    count_tiles,
    locate_tile,
    rows_and_columns,
    weigh,
)

#: Times of a program.
BLOCK = 1024


@triton.jit
def interpolant_fwd_kernel(
    z0,
    z1,
    coef,
    zt,
    ut,
    B,
    D,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALIGN: tl.constexpr,
):
    rows, offsets, mask = locate_tile(tl.program_id(0), B, D, BLOCK_B, BLOCK_D, ALIGN)
    # The flow loss reads z0 and z1 too, so they keep the default cache policy.
    x0 = tl.load(z0 + offsets, mask=mask)
    x1 = tl.load(z1 + offsets, mask=mask)
    z = weigh(x0, x1, coef, 0, 1, rows, B)
    if ut is not None:
        u = weigh(x0, x1, coef, 2, 3, rows, B)
        tl.store(ut + offsets, u.to(ut.dtype.element_ty), mask=mask)
    tl.store(zt + offsets, z.to(zt.dtype.element_ty), mask=mask)


@triton.jit
def coefficients_at(t, KIND: tl.constexpr):
    """a, b, a', b' of a built-in path (fastnode/flow/paths.py) at t."""
    HALF_PI: tl.constexpr = 1.5707963267948966
    if KIND == 0:
        one = tl.full(t.shape, 1.0, t.dtype)
        return 1 - t, t, -one, one
    else:
        cosine, sine = tl.cos(t * HALF_PI), tl.sin(t * HALF_PI)
        if KIND == 1:
            return cosine, sine, -HALF_PI * sine, HALF_PI * cosine
        else:
            return 1 - sine, 1 - cosine, -HALF_PI * cosine, HALF_PI * sine


@triton.jit
def path_coefficients_kernel(t, coef, inside, B, KIND: tl.constexpr, BLOCK: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    size = tl.cast(B, tl.int64)
    present = rows < size
    time = tl.load(t + rows, mask=present, other=0.0)
    a, b, da, db = coefficients_at(time, KIND)
    tl.store(coef + rows, a, mask=present)
    tl.store(coef + size + rows, b, mask=present)
    tl.store(coef + 2 * size + rows, da, mask=present)
    tl.store(coef + 3 * size + rows, db, mask=present)
    if inside is not None:
        # NaN is not inside.
        right = (time >= 0.0) & (time <= 1.0)
        tl.atomic_min(inside, tl.min(right.to(tl.int32), axis=0))


@triton.jit
def sampled_interpolant_fwd_kernel(
    z0,
    z1,
    seed,
    t,
    coef,
    zt,
    zero_probability: tl.float64,
    B,
    D,
    KIND: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALIGN: tl.constexpr,
):
    index = tl.program_id(0)
    rows, offsets, mask = locate_tile(index, B, D, BLOCK_B, BLOCK_D, ALIGN)
    x0 = tl.load(z0 + offsets, mask=mask)
    x1 = tl.load(z1 + offsets, mask=mask)
    # Every tile of a row draws the numbers of that row itself: the same for the same seed.
    time, chance, _, _ = tl.rand4x(tl.load(seed), rows)
    time = tl.where(chance < zero_probability, 0.0, time)
    a, b, da, db = coefficients_at(time, KIND)
    z = a[:, None] * x0.to(tl.float32) + b[:, None] * x1.to(tl.float32)
    tl.store(zt + offsets, z.to(zt.dtype.element_ty), mask=mask)
    if index % tl.cdiv(D, BLOCK_D) == 0:
        size = tl.cast(B, tl.int64)
        present = rows < size
        tl.store(t + rows, time, mask=present)
        tl.store(coef + rows, a, mask=present)
        tl.store(coef + size + rows, b, mask=present)
        tl.store(coef + 2 * size + rows, da, mask=present)
        tl.store(coef + 3 * size + rows, db, mask=present)


@triton.jit
def interpolant_bwd_kernel(
    g_zt,
    g_u,
    coef,
    dz0,
    dz1,
    sign: tl.float64,
    B,
    D,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALIGN: tl.constexpr,
):
    rows, offsets, mask = locate_tile(tl.program_id(0), B, D, BLOCK_B, BLOCK_D, ALIGN)
    gz = None
    gu = None
    if g_zt is not None:
        gz = tl.load(g_zt + offsets, mask=mask, eviction_policy="evict_first")
    if g_u is not None:
        gu = tl.load(g_u + offsets, mask=mask, eviction_policy="evict_first")
        # tl.full, because the interpreter hands over a Python float, which has no method `to`.
        gu = gu.to(coef.dtype.element_ty) * tl.full([1, 1], sign, coef.dtype.element_ty)
    # No load may be moved over a store, so both sums come before the first store.
    if dz0 is not None:
        d0 = weigh(gz, gu, coef, 0, 2, rows, B)
    if dz1 is not None:
        d1 = weigh(gz, gu, coef, 1, 3, rows, B)
    if dz0 is not None:
        tl.store(dz0 + offsets, d0.to(dz0.dtype.element_ty), mask=mask)
    if dz1 is not None:
        tl.store(dz1 + offsets, d1.to(dz1.dtype.element_ty), mask=mask)


def path_coefficients(t: torch.Tensor, kind: int, check: bool) -> torch.Tensor:
    """The coefficients of a built-in path at t [B], float32 or float64 and contiguous, as [4, B].

    ``check`` asserts on the device that t lies in [0, 1]: the host does not wait, and learns of it
    at its next call that does.
    """
    coef = t.new_empty(4, t.numel())
    if t.numel() == 0:
        return coef
    inside = torch.ones((), dtype=torch.int32, device=t.device) if check else None
    with torch.cuda.device_of(t):
        path_coefficients_kernel[(ceil_div(t.numel(), BLOCK),)](
            t, coef, inside, t.numel(), kind, BLOCK, num_warps=WARPS
        )
    if inside is not None:
        torch._assert_async(inside, "t must lie in [0, 1]; extrapolate=True allows any t")
    return coef


def interpolant(
    z0: torch.Tensor, z1: torch.Tensor, coef: torch.Tensor, store_target: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Interpolant and, if asked for, target velocity.

    z0, z1: [B, ...], contiguous, one dtype. coef: [4, B], rows a, b, a', b', float64 for float64
    states and float32 otherwise. Equivalent to::

        zt = coef[0] * z0 + coef[1] * z1           # coefficients per sample, in coef's dtype
        ut = coef[2] * z0 + coef[3] * z1           # None unless store_target
    """
    zt = torch.empty_like(z0)
    ut = torch.empty_like(z0) if store_target else None
    if z0.numel() == 0:
        return zt, ut
    B, D = rows_and_columns(z0)
    tiling = choose_tiling(B, D, z0.element_size())
    with torch.cuda.device_of(z0):
        interpolant_fwd_kernel[(count_tiles(B, D, tiling),)](
            z0, z1, coef, zt, ut, B, D, *tiling, num_warps=WARPS
        )
    return zt, ut


def sampled_interpolant(
    z0: torch.Tensor, z1: torch.Tensor, seed: torch.Tensor, kind: int, zero_probability: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random times, their coefficients and the interpolant there, in one pass.

    z0, z1: [B, ...], contiguous, not empty, one dtype, not float64. seed: 0-dim, int64, on their
    device. kind: that of a built-in path. Equivalent to::

        t = where(rand(B) < zero_probability, 0, rand(B))       # float32, of the seed and the row
        coef = path.coefficients(t)                             # [4, B], float32
        zt = coef[0] * z0 + coef[1] * z1
    """
    B, D = rows_and_columns(z0)
    t = z0.new_empty(B, dtype=torch.float32)
    coef, zt = t.new_empty(4, B), torch.empty_like(z0)
    tiling = choose_tiling(B, D, z0.element_size())
    with torch.cuda.device_of(z0):
        sampled_interpolant_fwd_kernel[(count_tiles(B, D, tiling),)](
            z0, z1, seed, t, coef, zt, zero_probability, B, D, kind, *tiling, num_warps=WARPS
        )
    return t, coef, zt


def interpolant_backward(
    g_zt: torch.Tensor | None,
    g_u: torch.Tensor | None,
    coef: torch.Tensor,
    sign: float,
    need0: bool,
    need1: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients for z0 and z1 from those for the interpolant and the target velocity, in one pass.

    g_zt, g_u: [B, ...], contiguous, one dtype; either may be None and then counts as zero. coef as
    for :func:`interpolant`. Equivalent to::

        dz0 = coef[0] * g_zt + sign * coef[2] * g_u       # None unless need0
        dz1 = coef[1] * g_zt + sign * coef[3] * g_u       # None unless need1

    The flow loss depends on v - u and leaves its gradient for v: then that is g_u, and sign is -1.

    Both are None if g_zt and g_u are None.
    """
    g = g_u if g_zt is None else g_zt
    if g is None or not (need0 or need1):
        return None, None
    dz0 = torch.empty_like(g) if need0 else None
    dz1 = torch.empty_like(g) if need1 else None
    if g.numel() == 0:
        return dz0, dz1
    B, D = rows_and_columns(g)
    tiling = choose_tiling(B, D, g.element_size())
    with torch.cuda.device_of(g):
        interpolant_bwd_kernel[(count_tiles(B, D, tiling),)](
            g_zt, g_u, coef, dz0, dz1, sign, B, D, *tiling, num_warps=WARPS
        )
    return dz0, dz1
