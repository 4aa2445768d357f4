"""What the CUDA kernels compute, found out without a GPU: each thread is a fiber on the CPU."""

from __future__ import annotations

import ctypes

import pytest
import torch
from cuda_emulation import COMPILER, DTYPES, Guarded, call, library

from fastnode.ops.rk_adjoint import rk_adjoint_reference
from fastnode.ops.rk_dense import rk_dense_reference
from fastnode.ops.rk_error import rk_error_reference
from fastnode.ops.rk_rows import (
    rk_dense_rows_reference,
    rk_error_rows_reference,
    rk_stage_rows_reference,
)
from fastnode.ops.rk_stage import rk_stage_reference

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
FLAT = [1, 63, 1023, 5000]
ROWS = [(1, 1), (3, 7), (300, 2), (5, 33), (7, 1024), (3, 1025), (2, 5000)]
RTOL, ATOL = 1e-2, 1e-3


def make(shape, dtype, terms=6, offset=0):
    """Two states, stages and weights, `offset` elements into their memory."""
    generator = torch.Generator().manual_seed(0)
    count = torch.Size(shape).numel()
    tensors = [
        torch.randn(count + 16, generator=generator).to(dtype)[offset : offset + count].view(shape)
        for _ in range(terms + 2)
    ]
    y0, y1, *k = tensors
    return y0, y1, k, [0.3 * (-1) ** j / (j + 1) for j in range(terms)]


def wide(tensors):
    return [x.double() for x in tensors]


def close(result, wanted):
    """To one rounding of the result's dtype, with room for the order of sums."""
    eps = torch.finfo(result.dtype).eps
    torch.testing.assert_close(result.double(), wanted, rtol=4 * eps, atol=8 * eps)


offsets = pytest.mark.parametrize("offset", [0, 1])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@offsets
@dtypes
@pytest.mark.parametrize("numel", FLAT)
def test_stage_and_its_twin_with_the_step_in_memory(numel, dtype, offset):
    y, _, k, c = make((numel,), dtype, offset=offset)
    out, twin = (Guarded(y.shape, dtype, offset) for _ in range(2))
    call("stage", y, y, k, c, len(k), numel, out.inside)
    close(out.checked(), rk_stage_reference(y.double(), wide(k), c))
    call("step_stage", y, y, k, [w / 0.5 for w in c], len(k), [0.5], numel, twin.inside)
    assert torch.equal(twin.checked(), out.inside)


@dtypes
@pytest.mark.parametrize("terms", [1, 3, 32])
def test_adjoint(terms, dtype):
    _, _, x, c = make((1023,), dtype, terms)
    out = Guarded((1023,), dtype)
    call("adjoint", x[0], None, x, c, terms, 1023, out.inside)
    close(out.checked(), rk_adjoint_reference(wide(x), c))
    first = out.inside.clone()
    call("adjoint", x[0], out.inside, x, c, terms, 1023, out.inside)
    close(out.checked(), first.double() + rk_adjoint_reference(wide(x), c))


@offsets
@dtypes
@pytest.mark.parametrize("times", [1, 5, 80])
def test_dense_rows_are_bit_for_bit_stages(times, dtype, offset):
    y, _, k, _ = make((515,), dtype, offset=offset)
    c = torch.linspace(-1, 1, times * len(k), dtype=torch.float64).view(times, len(k))
    out, stage = Guarded((times, 515), dtype, offset), Guarded((515,), dtype)
    call("dense", y, y, k, c.flatten().tolist(), len(k), times, 515, out.inside)
    close(out.checked(), rk_dense_reference(y.double(), wide(k), c))
    for row, result in zip(c.tolist(), out.inside, strict=True):
        call("stage", y, y, k, row, len(k), 515, stage.inside)
        assert torch.equal(result, stage.inside)


@offsets
@dtypes
@pytest.mark.parametrize("shape", [*ROWS, (1, 5000), (1, 12345)], ids=str)
def test_error_norms_of_rows_and_of_all(shape, dtype, offset):
    y0, y1, k, c = make(shape, dtype, offset=offset)
    acc = torch.promote_types(dtype, torch.float32)
    rows, dim = shape
    norm, joint = Guarded((rows,), acc), Guarded((1,), acc)
    call("error", y0, y0, y1, k, c, len(k), RTOL, ATOL, rows, dim, norm.inside)
    wanted = rk_error_reference(y0.double(), y1.double(), wide(k), c, RTOL, ATOL, True)
    rtol = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(norm.checked().double(), wanted, rtol=rtol, atol=0)
    call("error", y0, y0, y1, k, c, len(k), RTOL, ATOL, 1, rows * dim, joint.inside)
    wanted = rk_error_reference(y0.double(), y1.double(), wide(k), c, RTOL, ATOL)
    torch.testing.assert_close(joint.checked()[0].double(), wanted, rtol=rtol, atol=0)


def test_memory_of_a_long_row_is_enough_for_its_parts():
    # With more than 4096 pieces of 2048 elements the pieces become longer, and fewer.
    partials = library().partials
    partials.argtypes, partials.restype = 2 * [ctypes.c_int64], ctypes.c_int64
    counts = [partials(1, n) for n in (0, 1, 1025, 2048, 2049, 5000, 2**23, 2**23 + 100, 2**26)]
    assert counts == sorted(counts) and counts[3] == 0 and counts[4] == 2
    assert partials(1, 2**23) == 4096 and partials(7, 5000) == 21


def test_nan_anywhere_makes_the_norm_nan():
    for place in range(3):
        y0, y1, k, c = make((5001,), torch.float32)
        (y0, y1, k[2])[place][4777] = torch.nan
        norm = Guarded((1,), torch.float32)
        call("error", y0, y0, y1, k, c, len(k), RTOL, ATOL, 1, 5001, norm.inside)
        assert norm.checked().isnan()


@offsets
@dtypes
@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_rows_with_numbers_of_their_own(shape, dtype, offset):
    y0, y1, k, c = make(shape, dtype, offset=offset)
    rows, dim = shape
    h = torch.linspace(0.1, -0.7, rows, dtype=torch.float64)
    rtol, atol = (torch.linspace(a, 3 * a, rows, dtype=torch.float64) for a in (RTOL, ATOL))
    w = torch.linspace(-1, 1, rows * len(k), dtype=torch.float64).view(rows, len(k))
    out, dense = (Guarded(shape, dtype, offset) for _ in range(2))
    norm = Guarded((rows,), torch.promote_types(dtype, torch.float32))
    call("stage_rows", y0, y0, k, c, len(k), h, rows, dim, out.inside)
    close(out.checked(), rk_stage_rows_reference(y0.double(), wide(k), c, h))
    call("dense_rows", y0, y0, k, w, len(k), rows, dim, dense.inside)
    close(dense.checked(), rk_dense_rows_reference(y0.double(), wide(k), w))
    call("error_rows", y0, y0, y1, k, c, len(k), h, rtol, atol, rows, dim, norm.inside)
    wanted = rk_error_rows_reference(y0.double(), y1.double(), wide(k), c, h, rtol, atol)
    near = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(norm.checked().double(), wanted, rtol=near, atol=0)
