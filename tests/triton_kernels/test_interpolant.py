import os

import pytest
import torch

pytest.importorskip("triton")

from fastnode.triton_kernels.interpolant import interpolant, interpolant_backward  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("no CUDA device; test_interpreted.py runs this file", allow_module_level=True)

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# One element; columns of one; odd; several tiles of columns and rows; images; one short huge row.
SHAPES = [(1, 1), (1030, 1), (5, 7), (2, 63), (3, 1023), (70, 48), (3, 2, 5, 11), (1, 5000)]


def coefficients(random, batch: int, dtype: torch.dtype) -> torch.Tensor:
    return random(4, batch, dtype=torch.float64 if dtype == torch.float64 else torch.float32)


def combine(x, y, c, d, dtype):
    """c x + d y with one coefficient for each sample, computed in ``dtype``."""
    shape = (-1,) + (1,) * (x.dim() - 1)
    return c.to(dtype).view(shape) * x.to(dtype) + d.to(dtype).view(shape) * y.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_interpolant_and_velocity_are_as_good_as_torch(
    shape, dtype, random, assert_as_good_as_torch
):
    z0, z1 = random(*shape, dtype=dtype), random(*shape, dtype=dtype)
    coef = coefficients(random, shape[0], dtype)
    for result, c, d in zip(interpolant(z0, z1, coef, True), coef[::2], coef[1::2], strict=True):
        assert result.dtype == dtype
        exact = combine(z0, z1, c, d, torch.float64)
        assert_as_good_as_torch(result, combine(z0, z1, c, d, dtype), exact)


def test_velocity_is_made_only_on_request(random):
    z0, z1 = random(3, 65, dtype=torch.float32), random(3, 65, dtype=torch.float32)
    coef = coefficients(random, 3, torch.float32)
    zt, ut = interpolant(z0, z1, coef, False)
    assert ut is None
    assert torch.equal(zt, interpolant(z0, z1, coef, True)[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_offset_views_give_what_aligned_copies_give(dtype, random):
    coef = coefficients(random, 5, dtype)
    z0, z1 = (random(5, 96, dtype=dtype, offset=3) for _ in range(2))
    for view, copy in zip(
        interpolant(z0, z1, coef, True),
        interpolant(z0.clone(), z1.clone(), coef, True),
        strict=True,
    ):
        assert torch.equal(view, copy)


def test_a_path_starts_and_ends_exactly_at_its_end_points(random):
    z0, z1 = random(2, 300, dtype=torch.float32), random(2, 300, dtype=torch.float32)
    coef = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [1.0, 1.0]], device=z0.device)
    zt, ut = interpolant(z0, z1, coef, True)
    assert torch.equal(zt, torch.stack([z0[0], z1[1]]))
    assert torch.equal(ut, z1 - z0)


@pytest.mark.parametrize("sign", [1.0, -1.0, 1 / 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (3, 1023), (3, 2, 5, 11)], ids=str)
def test_backward_is_as_good_as_torch(shape, dtype, sign, random, assert_as_good_as_torch):
    g_zt, g_u = random(*shape, dtype=dtype), random(*shape, dtype=dtype)
    coef = coefficients(random, shape[0], dtype)
    results = interpolant_backward(g_zt, g_u, coef, sign, True, True)
    for result, c, d in zip(results, coef[:2], coef[2:], strict=True):
        exact = combine(g_zt, g_u, c, sign * d.double(), torch.float64)
        assert_as_good_as_torch(result, combine(g_zt, g_u, c, sign * d, dtype), exact)


@pytest.mark.parametrize("need", [(True, True), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize("absent", ["g_zt", "g_u"])
def test_an_absent_gradient_counts_as_zero(absent, need, random):
    g = random(4, 33, dtype=torch.float32)
    coef = coefficients(random, 4, torch.float32)
    pair = (None, g) if absent == "g_zt" else (g, None)
    zero = torch.zeros_like(g)
    expected = interpolant_backward(
        zero if pair[0] is None else g, zero if pair[1] is None else g, coef, -1.0, True, True
    )
    for wanted, result, whole in zip(
        need, interpolant_backward(*pair, coef, -1.0, *need), expected, strict=True
    ):
        assert (result is not None) == wanted
        assert result is None or torch.equal(result, whole)


def test_no_gradient_in_means_no_gradient_out(random):
    coef = coefficients(random, 2, torch.float32)
    g = random(2, 3, dtype=torch.float32)
    assert interpolant_backward(None, None, coef, 1.0, True, True) == (None, None)
    assert interpolant_backward(g, g, coef, 1.0, False, False) == (None, None)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0,)], ids=str)
def test_empty_states_give_empty_results(shape, random):
    z = random(*shape, dtype=torch.float32)
    coef = coefficients(random, shape[0], torch.float32)
    for results in (interpolant(z, z, coef, True), interpolant_backward(z, z, coef, 1, True, True)):
        assert [r.shape for r in results] == [z.shape, z.shape]


def test_nothing_is_written_outside_the_results(random, monkeypatch):
    buffers = []

    def guarded(like: torch.Tensor) -> torch.Tensor:
        buffer = torch.full((like.numel() + 4096,), 7.0, dtype=like.dtype, device=like.device)
        buffers.append(buffer)
        return buffer[2048:-2048].view(like.shape)

    z = random(5, 67, dtype=torch.float32)
    coef = coefficients(random, 5, torch.float32)
    monkeypatch.setattr(torch, "empty_like", guarded)
    interpolant(z, z, coef, True)
    interpolant_backward(z, z, coef, 1.0, True, True)
    assert len(buffers) == 4
    for buffer in buffers:
        assert (buffer[:2048] == 7).all() and (buffer[-2048:] == 7).all()
