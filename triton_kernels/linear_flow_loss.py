"""A linear layer and the flow loss of what it returns, which is never stored; its gradients.

All three matrix products walk over whole rows and columns in one order, or in pieces whose sums are
added in order: no result depends on which program comes first.
"""

import torch
import triton
import triton.language as tl

from .flow_loss import SLOTS, sum_partials_kernel
from .tiling import WARPS, ceil_div, weigh

# Tile of a product and how much of the summed dimension is held at once: 32 KB for each of three
# stages in 16 bits, as the matrix units want tiles of 64 rows or more for every four warps. These
# and the numbers below are estimates, which no GPU has timed.
TILE, DEPTH = 128, 64
PRODUCT_WARPS, STAGES = 8, 3
# A sum over the batch is cut into pieces until this many programs run: two for each multiprocessor
# of the large parts. A constant, so that the order of a sum is the same everywhere.
PROGRAMS = 264


@triton.jit
def product(
    a,
    b,
    rows,
    columns,
    first,
    M,
    N,
    L,
    a_row: tl.constexpr,
    a_next: tl.constexpr,
    b_next: tl.constexpr,
    b_column: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_L: tl.constexpr,
    PRECISION: tl.constexpr,
    SUM: tl.constexpr,
):
    """sum_l a[row, l] b[l, column] over STEPS blocks of l from ``first``; the sums of a's rows."""
    total = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
    sums = tl.zeros([rows.shape[0]], tl.float32)
    # The bounds are constants, because under NumPy 2.4 the interpreter of Triton 3.6 takes no
    # others, and because only loops of this kind load ahead.
    for step in range(STEPS):
        place = first + step * BLOCK_L + tl.arange(0, BLOCK_L)
        x = tl.load(
            a + rows[:, None] * a_row + place[None, :] * a_next,
            mask=(rows < M)[:, None] & (place < L)[None, :],
            other=0.0,
        )
        y = tl.load(
            b + place[:, None] * b_next + columns[None, :] * b_column,
            mask=(place < L)[:, None] & (columns < N)[None, :],
            other=0.0,
        )
        total = tl.dot(x, y, total, input_precision=PRECISION)
        if SUM:
            sums += tl.sum(x.to(tl.float32), axis=1)
    return total, sums


@triton.jit
def linear_flow_loss_fwd_kernel(
    h,
    weight,
    bias,
    z0,
    z1,
    coef,
    grad,
    partials,
    grad_scale: tl.float64,
    B,
    D: tl.constexpr,
    K: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    index = tl.program_id(0)
    across: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    # Neighbouring programs share rows of h, which are longer in sum than those of the weight.
    rows = (index // across).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    columns = (index % across) * BLOCK_D + tl.arange(0, BLOCK_D)
    first = tl.zeros([], tl.int64)
    steps: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    v, _ = product(
        h, weight, rows, columns, first, B, D, K, K, 1, 1, K, steps, BLOCK_K, PRECISION, False
    )
    if bias is not None:
        v += tl.load(bias + columns, mask=columns < D, other=0.0).to(tl.float32)[None, :]
    offsets = rows[:, None] * D + columns[None, :]
    mask = (rows < B)[:, None] & (columns < D)[None, :]
    x0 = tl.load(z0 + offsets, mask=mask, eviction_policy="evict_first")
    x1 = tl.load(z1 + offsets, mask=mask, eviction_policy="evict_first")
    r = tl.where(mask, v - weigh(x0, x1, coef, 2, 3, rows, B), 0.0)
    if grad is not None:
        scale = tl.full([1, 1], grad_scale, tl.float32)
        tl.store(grad + offsets, (scale * r).to(grad.dtype.element_ty), mask=mask)
    tl.store(partials + index, tl.sum(tl.sum(r * r, axis=1), axis=0))


@triton.jit
def product_kernel(
    a,
    b,
    out,
    sums,
    M,
    N: tl.constexpr,
    L,
    a_row: tl.constexpr,
    a_next: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    PRECISION: tl.constexpr,
):
    index = tl.program_id(0)
    piece = tl.program_id(1).to(tl.int64)
    across: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    rows = (index // across).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = (index % across) * BLOCK_N + tl.arange(0, BLOCK_N)
    total, row_sums = product(
        a,
        b,
        rows,
        columns,
        piece * STEPS * BLOCK_L,
        M,
        N,
        L,
        a_row,
        a_next,
        N,
        1,
        STEPS,
        BLOCK_L,
        PRECISION,
        sums is not None,
    )
    size = tl.cast(M, tl.int64)
    offsets = (piece * size + rows)[:, None] * N + columns[None, :]
    mask = (rows < M)[:, None] & (columns < N)[None, :]
    tl.store(out + offsets, total.to(out.dtype.element_ty), mask=mask)
    if sums is not None:
        # Every program of a row of tiles has these sums.
        if index % across == 0:
            tl.store(sums + piece * size + rows, row_sums, mask=rows < M)


def linear_flow_loss(
    h: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    z0: torch.Tensor,
    z1: torch.Tensor,
    coef: torch.Tensor,
    loss_scale: float,
    grad_scale: float,
    with_grad: bool,
    precision: str,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scaled sum of squares of the residual of a linear layer, and the scaled residual.

    h: [B, K], weight: [D, K], bias: [D] or None, z0, z1: [B, D], contiguous, not empty, one dtype
    of float32, bfloat16 and float16. coef: [4, B], rows a, b, a', b', float32. precision: of
    products of float32, "ieee" or "tf32". Equivalent to::

        r = h @ weight.T + bias - (coef[2] * z0 + coef[3] * z1)      # per sample, in float32
        loss = loss_scale * (r**2).sum()           # 0-dim, float32
        grad = grad_scale * r                      # [B, D] in h's dtype; None unless with_grad
    """
    (B, K), D = h.shape, weight.shape[0]
    # With wider tiles of float32 the end points would not fit into registers beside the residual.
    width = TILE * 2 // h.element_size()
    tiles = ceil_div(B, TILE) * ceil_div(D, width)
    grad = torch.empty_like(z0) if with_grad else None
    partials, loss = coef.new_empty(tiles), coef.new_empty(())
    with torch.cuda.device_of(h):
        linear_flow_loss_fwd_kernel[(tiles,)](
            h,
            weight,
            bias,
            z0,
            z1,
            coef,
            grad,
            partials,
            grad_scale,
            B,
            D,
            K,
            TILE,
            width,
            depth(h),
            precision,
            num_warps=PRODUCT_WARPS,
            num_stages=STAGES,
        )
        sum_partials_kernel[(1,)](partials, loss, loss_scale, tiles, SLOTS, num_warps=WARPS)
    return loss, grad


def depth(x: torch.Tensor) -> int:
    """The block of the summed dimension: as many bytes for every dtype."""
    return DEPTH * 2 // x.element_size()


def input_gradient(dv: torch.Tensor, weight: torch.Tensor, precision: str) -> torch.Tensor:
    """``dv @ weight`` for dv [B, D] and weight [D, K], contiguous and of one dtype."""
    (B, D), K = dv.shape, weight.shape[1]
    out = dv.new_empty(B, K)
    steps = ceil_div(D, depth(dv))
    _product(dv, weight, out, None, B, K, D, D, 1, steps, 1, precision)
    return out


def weight_gradient(
    dv: torch.Tensor, h: torch.Tensor, with_bias: bool, precision: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``dv.T @ h`` and, if asked for, ``dv.sum(0)``, for dv [B, D] and h [B, K] as above."""
    (B, D), K = dv.shape, h.shape[1]
    tiles = ceil_div(D, TILE) * ceil_div(K, TILE)
    blocks = ceil_div(B, depth(dv))
    steps = ceil_div(blocks, max(1, PROGRAMS // tiles))
    pieces = ceil_div(blocks, steps)
    out = dv.new_empty(pieces, D, K, dtype=dv.dtype if pieces == 1 else torch.float32)
    sums = dv.new_empty(pieces, D, dtype=torch.float32) if with_bias else None
    _product(dv, h, out, sums, D, K, B, 1, D, steps, pieces, precision)
    if pieces > 1:
        out = out.sum(dim=0).to(dv.dtype)
    return out.view(D, K), None if sums is None else sums.sum(dim=0).to(dv.dtype)


def _product(
    a: torch.Tensor,
    b: torch.Tensor,
    out: torch.Tensor,
    sums: torch.Tensor | None,
    M: int,
    N: int,
    L: int,
    a_row: int,
    a_next: int,
    steps: int,
    pieces: int,
    precision: str,
) -> None:
    with torch.cuda.device_of(a):
        product_kernel[(ceil_div(M, TILE) * ceil_div(N, TILE), pieces)](
            a,
            b,
            out,
            sums,
            M,
            N,
            L,
            a_row,
            a_next,
            steps,
            TILE,
            TILE,
            depth(a),
            precision,
            num_warps=PRODUCT_WARPS,
            num_stages=STAGES,
        )
