import os

import pytest
import torch

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from fastnode.triton_kernels import tiling  # noqa: E402


@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize("B", [1, 2, 3, 64, 65536])
@pytest.mark.parametrize("D", [1, 2, 3, 16, 100, 101, 512, 784, 3072, 65536, 2**33])
def test_tiles_suit_the_threads(B, D, itemsize):
    block_b, block_d, align = tiling.choose_tiling(B, D, itemsize)
    threads = tiling.WARPS * 32
    assert block_b & (block_b - 1) == block_d & (block_d - 1) == 0
    assert D % align == 0 and align <= 16
    assert 8 <= block_b * block_d / threads <= 16
    # No more than half the columns and, unless a tile holds the whole width, of the rows is waste.
    assert block_d < 2 * D
    assert block_b < 2 * B or block_d >= D


@triton.jit
def offsets_kernel(
    rows_out, offsets_out, mask_out, index, B, D, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr,
    ALIGN: tl.constexpr,
):  # fmt: skip
    rows, offsets, mask = tiling.locate_tile(index, B, D, BLOCK_B, BLOCK_D, ALIGN)
    r = tl.arange(0, BLOCK_B)
    at = r[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    tl.store(rows_out + r, rows)
    tl.store(offsets_out + at, offsets)
    tl.store(mask_out + at, mask)


@pytest.mark.gpu if os.environ.get("TRITON_INTERPRET") != "1" else lambda f: f
@pytest.mark.parametrize(
    "B, D", [(3, 5), (65537, 65536), (10**9, 48), (2, 2**30 + 16), (3, 2**32 + 5)], ids=str
)
def test_the_last_tile_lies_right_beyond_32_bits(B, D, device):
    plan = tiling.choose_tiling(B, D, 4)
    column_tiles = triton.cdiv(D, plan.BLOCK_D)
    index = tiling.count_tiles(B, D, plan) - 1
    rows = torch.empty(plan.BLOCK_B, dtype=torch.int64, device=device)
    offsets = torch.empty(plan.BLOCK_B, plan.BLOCK_D, dtype=torch.int64, device=device)
    mask = torch.empty(plan.BLOCK_B, plan.BLOCK_D, dtype=torch.bool, device=device)
    offsets_kernel[(1,)](rows, offsets, mask, index, B, D, *plan)

    expected_rows = index // column_tiles * plan.BLOCK_B + torch.arange(plan.BLOCK_B)
    columns = index % column_tiles * plan.BLOCK_D + torch.arange(plan.BLOCK_D)
    expected_mask = (expected_rows < B)[:, None] & (columns < D)
    assert torch.equal(rows.cpu(), expected_rows)
    assert torch.equal(mask.cpu(), expected_mask)
    assert offsets.cpu()[expected_mask].max() == B * D - 1
    assert torch.equal(offsets.cpu(), expected_rows[:, None] * D + columns)
