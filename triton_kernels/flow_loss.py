"""Squared flow-matching residual with its gradient in one pass, and scaling of that gradient."""

import torch
import triton
import triton.language as tl

from .tiling import (
    VECTORS,
    WARPS,
    ceil_div,
    choose_tiling,
    count_tiles,
    locate_tile,
    next_power_of_2,
    rows_and_columns,
    weigh,
)

# Programs that walk over all tiles: 5 to 8 for each multiprocessor of the large parts, so that, by
# estimate, all of them run at once and no remainder is left to run alone. A constant, not a
# multiple of the count of multiprocessors, so that the order of a sum, and with it its last bits,
# is the same everywhere.
MAX_PROGRAMS = 768
SLOTS = next_power_of_2(MAX_PROGRAMS)


@triton.jit
def flow_loss_fwd_kernel(
    v,
    z0,
    z1,
    coef,
    grad,
    partials,
    grad_scale: tl.float64,
    B,
    D,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALIGN: tl.constexpr,
):
    compute: tl.constexpr = coef.dtype.element_ty
    # tl.full, because the interpreter hands over a Python float, which has no method `to`.
    scale = tl.full([1, 1], grad_scale, compute)
    total = tl.zeros([BLOCK_B, BLOCK_D], compute)
    tiles = tl.cdiv(B, BLOCK_B) * tl.cdiv(D, BLOCK_D)
    index = tl.program_id(0)
    # Not `range`: under NumPy 2.4 the interpreter of Triton 3.6 takes no tensors as its bounds.
    while index < tiles:
        rows, offsets, mask = locate_tile(index, B, D, BLOCK_B, BLOCK_D, ALIGN)
        # Not needed later: the backward pass reads the residual that is stored below.
        x0 = tl.load(z0 + offsets, mask=mask, eviction_policy="evict_first")
        x1 = tl.load(z1 + offsets, mask=mask, eviction_policy="evict_first")
        x = tl.load(v + offsets, mask=mask, eviction_policy="evict_first")
        r = x.to(compute) - weigh(x0, x1, coef, 2, 3, rows, B)
        total += tl.where(mask, r * r, 0.0)
        if grad is not None:
            tl.store(grad + offsets, (scale * r).to(grad.dtype.element_ty), mask=mask)
        index += tl.num_programs(0)
    tl.store(partials + tl.program_id(0), tl.sum(tl.sum(total, axis=1), axis=0))


@triton.jit
def sum_partials_kernel(partials, loss, loss_scale: tl.float64, n, BLOCK: tl.constexpr):
    slots = tl.arange(0, BLOCK)
    sums = tl.load(partials + slots, mask=slots < n, other=0.0)
    slots += BLOCK
    while tl.min(slots, axis=0) < n:
        sums += tl.load(partials + slots, mask=slots < n, other=0.0)
        slots += BLOCK
    total = tl.sum(sums, axis=0)
    tl.store(loss, total * tl.full([], loss_scale, total.dtype))


@triton.jit
def scale_kernel(x, g, n, BLOCK: tl.constexpr):
    compute: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    factor = tl.load(g).to(compute)
    # An upstream gradient of 1 is the rule, and then x is already right.
    if factor != 1.0:
        start = tl.program_id(0).to(tl.int64) * BLOCK
        while start < n:
            offsets = start + tl.arange(0, BLOCK)
            mask = offsets < n
            scaled = tl.load(x + offsets, mask=mask).to(compute) * factor
            tl.store(x + offsets, scaled.to(x.dtype.element_ty), mask=mask)
            start += tl.num_programs(0).to(tl.int64) * BLOCK


def flow_loss(
    v: torch.Tensor,
    z0: torch.Tensor,
    z1: torch.Tensor,
    coef: torch.Tensor,
    loss_scale: float,
    grad_scale: float,
    with_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scaled sum of squares of the residual, and the scaled residual.

    v, z0, z1: [B, ...], contiguous, one dtype. coef: [4, B], rows a, b, a', b' (of which the last
    two are used), float64 for float64 states and float32 otherwise. Equivalent to::

        r = v - (coef[2] * z0 + coef[3] * z1)      # coefficients per sample, in coef's dtype
        loss = loss_scale * (r**2).sum()           # 0-dim, in coef's dtype
        grad = grad_scale * r                      # in v's dtype

    The sum is taken in an order that depends on shape and dtype alone.
    """
    if v.numel() == 0:
        loss = coef.new_full((), loss_scale * 0.0)
        return loss, torch.empty_like(v) if with_grad else None
    B, D = rows_and_columns(v)
    tiling = choose_tiling(B, D, v.element_size())
    programs = min(count_tiles(B, D, tiling), MAX_PROGRAMS)
    grad = torch.empty_like(v) if with_grad else None
    partials = coef.new_empty(programs)
    loss = coef.new_empty(())
    with torch.cuda.device_of(v):
        flow_loss_fwd_kernel[(programs,)](
            v, z0, z1, coef, grad, partials, grad_scale, B, D, *tiling, num_warps=WARPS
        )
        sum_partials_kernel[(1,)](partials, loss, loss_scale, programs, SLOTS, num_warps=WARPS)
    return loss, grad


def scale_block(itemsize: int) -> int:
    return WARPS * 32 * VECTORS * (16 // itemsize)


def scale_(x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """``x *= g`` for a contiguous x and a 0-dim g on the same device; x is left alone where g is 1.

    g is read on the device, so the host does not wait for it.
    """
    if x.numel() == 0:
        return x
    block = scale_block(x.element_size())
    # Few programs with a loop instead of one for each block, as they usually have nothing to do.
    programs = min(ceil_div(x.numel(), block), MAX_PROGRAMS)
    with torch.cuda.device_of(x):
        scale_kernel[(programs,)](x, g, x.numel(), block, num_warps=WARPS)
    return x
