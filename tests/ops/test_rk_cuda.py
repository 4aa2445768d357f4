"""The Runge-Kutta ops on a GPU against their references in float64."""

from __future__ import annotations

import pytest
import torch

from fastnode.ops.rk_adjoint import rk_adjoint, rk_adjoint_reference
from fastnode.ops.rk_dense import rk_dense, rk_dense_reference
from fastnode.ops.rk_error import rk_error, rk_error_reference
from fastnode.ops.rk_rows import (
    rk_dense_rows,
    rk_dense_rows_reference,
    rk_error_rows,
    rk_error_rows_reference,
    rk_stage_rows,
    rk_stage_rows_reference,
)
from fastnode.ops.rk_stage import rk_stage, rk_stage_reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(1,), (63,), (1023,), (4096,), (3, 5, 7), (5, 20000), (1000003,), (0,), (3, 0), ()]
ROWS = [(1, 1), (3, 7), (300, 2), (7, 1024), (7, 1025), (2, 40000), (50000, 3), (0, 5), (3, 0)]
RTOL, ATOL = 1e-2, 1e-3


@pytest.fixture(autouse=True)
def poisoned_memory():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def make(shape, dtype=torch.float32, terms=6, offset=0):
    """Two states, stages and weights; `offset` elements into their memory."""
    generator = torch.Generator("cuda").manual_seed(0)
    numel = torch.Size(shape).numel()
    tensors = [
        torch.randn(numel + offset, generator=generator, device="cuda").to(dtype)[offset:]
        for _ in range(terms + 2)
    ]
    y0, y1, *k = (x.view(shape) for x in tensors)
    return y0, y1, k, [0.3 * (-1) ** j / (j + 1) for j in range(terms)]


def close(result, wanted):
    """To one rounding of the result's dtype, with room for the order of sums."""
    eps = torch.finfo(result.dtype).eps
    torch.testing.assert_close(result.double(), wanted, rtol=4 * eps, atol=8 * eps)


def wide(tensors):
    return [x.double() for x in tensors]


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stage(shape, dtype, offset):
    y, _, k, c = make(shape, dtype, offset=offset)
    result = rk_stage(y, k, c)
    assert result.dtype == dtype
    close(result, rk_stage_reference(y.double(), wide(k), c))


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dense_is_near_and_each_row_bit_for_bit_a_stage(shape, dtype, offset):
    y, _, k, c = make(shape, dtype, offset=offset)
    rows = [[w * factor for w in c] for factor in (0.0, 0.5, 1.0, -2.0, 0.25)]
    result = rk_dense(y, k, rows)
    close(result, rk_dense_reference(y.double(), wide(k), rows))
    for each, row in zip(result, rows, strict=True):
        assert torch.equal(each, rk_stage(y, k, row))


@pytest.mark.parametrize("times", [0, 1, 3, 36, 37, 300])
@pytest.mark.parametrize("terms", [0, 1, 7, 32])
def test_dense_at_any_number_of_times(terms, times):
    y, _, k, _ = make((1024,), torch.float64, terms)
    c = torch.linspace(-1, 1, times * terms, dtype=torch.float64).view(times, terms)
    torch.testing.assert_close(rk_dense(y, k, c), rk_dense_reference(y, k, c))


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("shape", SHAPES + [(300, 2), (7, 1024), (7, 1025), (2, 40000)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error(shape, dtype, per_sample, offset):
    if per_sample and not shape:
        pytest.skip("a scalar has no samples")
    y0, y1, k, c = make(shape, dtype, offset=offset)
    result = rk_error(y0, y1, k, c, RTOL, ATOL, per_sample)
    assert result.dtype == torch.promote_types(dtype, torch.float32)
    wanted = rk_error_reference(y0.double(), y1.double(), wide(k), c, RTOL, ATOL, per_sample)
    rtol = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(result.double(), wanted, rtol=rtol, atol=0)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("shape", ROWS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_with_numbers_of_their_own(shape, dtype, offset):
    y0, y1, k, c = make(shape, dtype, offset=offset)

    def of_rows(*ends, columns=None):
        numbers = torch.linspace(*ends, shape[0] * (columns or 1), dtype=torch.float64)
        return numbers.to("cuda").view(shape[0], *(() if columns is None else (columns,)))

    h, rtol, atol = of_rows(0.1, -0.7), of_rows(RTOL, 3 * RTOL), of_rows(ATOL, 3 * ATOL)
    w = of_rows(-1, 1, columns=len(k))
    close(rk_stage_rows(y0, k, c, h), rk_stage_rows_reference(y0.double(), wide(k), c, h))
    close(rk_dense_rows(y0, k, w), rk_dense_rows_reference(y0.double(), wide(k), w))
    result = rk_error_rows(y0, y1, k, c, h, rtol, atol)
    assert result.dtype == torch.promote_types(dtype, torch.float32)
    wanted = rk_error_rows_reference(y0.double(), y1.double(), wide(k), c, h, rtol, atol)
    near = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(result.double(), wanted, rtol=near, atol=0)


@pytest.mark.parametrize("terms", [1, 3, 32, 70])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_adjoint(shape, dtype, terms):
    _, _, x, c = make(shape, dtype, terms)
    result = rk_adjoint(x, c)
    assert result.dtype == dtype
    close(result, rk_adjoint_reference(wide(x), c))


@pytest.mark.parametrize("per_sample", [False, True])
def test_error_is_the_same_bits_each_time(per_sample):
    inputs = make((30, 70001))
    first = rk_error(*inputs, RTOL, ATOL, per_sample)
    for _ in range(5):
        assert torch.equal(rk_error(*inputs, RTOL, ATOL, per_sample), first)


def test_nan_anywhere_makes_the_norm_nan():
    for place in range(3):
        y0, y1, k, c = make((100001,))
        (y0, y1, k[2])[place][77777] = torch.nan
        assert rk_error(y0, y1, k, c, RTOL, ATOL).isnan()


def test_works_on_the_current_stream_and_in_a_graph():
    y0, y1, k, c = make((4096,))
    graph = torch.cuda.CUDAGraph()
    rk_error(y0, y1, k, c, RTOL, ATOL)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        stage = rk_stage(y0, k, c)
        norm = rk_error(y0, stage, k, c, RTOL, ATOL)
        dense = rk_dense(y0, k, [c, c])
        adjoint = rk_adjoint([y0, *k], [1.0, *c])
    y0.mul_(2)
    graph.replay()
    assert torch.equal(stage, rk_stage(y0, k, c))
    assert torch.equal(norm, rk_error(y0, stage, k, c, RTOL, ATOL))
    assert torch.equal(dense, rk_dense(y0, k, [c, c]))
    assert torch.equal(adjoint, rk_adjoint([y0, *k], [1.0, *c]))


def test_derivatives():
    y0, y1, k, c = make((2, 3), torch.float64, terms=2)
    inputs = [x.requires_grad_() for x in (y0, y1, *k)]
    dense = lambda y, _, *k: rk_dense(y, k, [c, c])  # noqa: E731
    adjoint = lambda *x: rk_adjoint(x, [1.0, -2.0, *c])  # noqa: E731
    error = lambda y0, y1, *k: rk_error(y0, y1, k, c, 0.1, 0.05, True)  # noqa: E731
    for function in (dense, adjoint, error):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)
