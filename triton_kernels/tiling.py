"""How a contiguous [B, D] tensor is cut into tiles, shared by the flow kernels."""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

WARPS = 4
# 16-byte vectors that a thread holds of each tensor. With 2 the loads stay together ahead of the
# arithmetic, and with the registers that takes some 70 to 130 KB can be in flight for each
# multiprocessor, where latency times bandwidth asks for about 40 on an H200. With 4 the assembler
# saves registers by waiting for the first loads before it issues the last. An estimate from the
# machine code; `python -m bench.gpu_rows tiles` measures the choices and has not run on a GPU.
VECTORS = 2


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


class Tiling(NamedTuple):
    """Constants of one launch: tile shape, and the power of two (up to 16) that divides D."""

    BLOCK_B: int
    BLOCK_D: int
    ALIGN: int


# A tile is 2-D because coefficients belong to rows: each thread then holds one 16-byte vector in
# each of a few rows and loads a coefficient once for each of them, without the division per element
# that a flat tile needs. A loop over the columns of a row block would save those few loads too, but
# would leave most of the chip idle where B is small and D huge.
def choose_tiling(B: int, D: int, itemsize: int) -> Tiling:
    """The tile shape for a [B, D] tensor with elements of ``itemsize`` bytes."""
    align = math.gcd(D, 16)
    # Without alignment the accesses are scalar, eight for each tensor.
    elements = WARPS * 32 * max(8, VECTORS * min(align, 16 // itemsize))
    rows = min(VECTORS, next_power_of_2(B))
    block_d = min(next_power_of_2(D), elements // rows)
    return Tiling(elements // block_d, block_d, align)


def rows_and_columns(z: torch.Tensor) -> tuple[int, int]:
    """B and D of a non-empty tensor seen as [B, D]."""
    return z.shape[0], z.numel() // z.shape[0]


def count_tiles(B: int, D: int, tiling: Tiling) -> int:
    return ceil_div(B, tiling.BLOCK_B) * ceil_div(D, tiling.BLOCK_D)


@triton.jit
def locate_tile(index, B, D, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, ALIGN: tl.constexpr):
    """Row numbers [BLOCK_B], element offsets and mask [BLOCK_B, BLOCK_D] of one tile.

    Neighbouring tiles are neighbours in memory. Only the start of a row is a 64-bit product.
    """
    # By itself the compiler looks for divisibility by 16 alone, but 16-byte accesses ask for less.
    D = D // ALIGN * ALIGN
    tiles = tl.cdiv(D, BLOCK_D)
    first = (index % tiles).to(tl.int64) * BLOCK_D
    rows = (index // tiles).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    columns = tl.arange(0, BLOCK_D)[None, :]
    offsets = (rows * D + first)[:, None] + columns
    return rows, offsets, (rows < B)[:, None] & (columns < D - first)


@triton.jit
def weigh(x, y, coef, row_x: tl.constexpr, row_y: tl.constexpr, rows, B):
    """coef[row_x] x + coef[row_y] y at ``rows`` of the batch, computed in the dtype of coef [4, B].

    x and y are tiles [BLOCK_B, BLOCK_D]; None stands for zero.
    """
    B = tl.cast(B, tl.int64)
    present = rows < B
    if x is None:
        return tl.load(coef + row_y * B + rows, mask=present)[:, None] * y.to(coef.dtype.element_ty)
    elif y is None:
        return tl.load(coef + row_x * B + rows, mask=present)[:, None] * x.to(coef.dtype.element_ty)
    else:
        c = tl.load(coef + row_x * B + rows, mask=present)[:, None]
        d = tl.load(coef + row_y * B + rows, mask=present)[:, None]
        return c * x.to(c.dtype) + d * y.to(d.dtype)
