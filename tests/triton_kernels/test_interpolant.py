import os

import pytest
import torch
from selection import slow

pytest.importorskip("triton")

from fastnode.flow import Concave, Convex, Linear, flow_loss  # noqa: E402
from fastnode.ops import dispatch  # noqa: E402
from fastnode.ops.interpolant import path_coefficients_reference  # noqa: E402
from fastnode.triton_kernels.interpolant import (  # noqa: E402
    interpolant,
    interpolant_backward,
    path_coefficients,
    sampled_interpolant,
)

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("path", [Linear(), Concave(), Convex()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("batch", [0, 1, 1029])
def test_coefficients_of_built_in_paths(batch, path, dtype, device):
    t = torch.linspace(-1, 2, batch, dtype=torch.float64, device=device).to(dtype)
    found = path_coefficients(t, path._kind, False)
    assert found.dtype == dtype and found.shape == (4, batch)
    exact = path_coefficients_reference(t.double(), path._kind, False)
    near = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), exact, rtol=near, atol=near)


def test_times_outside_of_the_path_are_asserted(device):
    t = torch.linspace(0, 1, 1500, device=device)
    path_coefficients(t, 0, True)
    if device.type == "cuda":
        pytest.skip("an assertion of the device's ends the process")
    for place, bad in ((3, -0.1), (1400, 1.5), (700, torch.nan)):
        wrong = t.clone()
        wrong[place] = bad
        with pytest.raises(RuntimeError, match="t must lie in"):
            path_coefficients(wrong, 0, True)
        assert path_coefficients(wrong, 0, False).shape == (4, 1500)


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


@pytest.mark.parametrize(
    "dtype", [torch.float32, slow(torch.bfloat16), slow(torch.float16)], ids=str
)
@pytest.mark.parametrize("kind, path", enumerate((Linear(), Concave(), Convex())))
def test_sampled_times_and_states_belong_together(kind, path, dtype, random, device):
    z0, z1 = random(9, 1030, dtype=dtype), random(9, 1030, dtype=dtype)
    seed = torch.tensor(3, device=device)
    t, coef, zt = sampled_interpolant(z0, z1, seed, kind, 0.3)
    assert t.dtype == coef.dtype == torch.float32
    torch.testing.assert_close(coef, path.coefficients(t), rtol=1e-6, atol=1e-6)
    assert torch.equal(zt, interpolant(z0, z1, coef, False)[0])
    again = sampled_interpolant(z0[:, :5].contiguous(), z1[:, :5].contiguous(), seed, kind, 0.3)
    assert torch.equal(again[0], t)


def test_sampled_times_are_uniform_but_for_those_at_zero(random, device):
    z = random(4000, 1, dtype=torch.float32)
    seeds = (torch.tensor(s, device=device) for s in (1, 2**62 + 1))
    first, second = (sampled_interpolant(z, z, seed, 0, 0.25)[0].double() for seed in seeds)
    assert not torch.equal(first, second)
    for t in (first, second):
        assert (t >= 0).all() and (t < 1).all()
        at_zero = t == 0
        assert abs(at_zero.double().mean() - 0.25) < 0.03
        inner = t[~at_zero]
        shares = torch.histc(inner.cpu(), 10, 0, 1) / inner.numel()
        assert (shares - 0.1).abs().max() < 0.03
    z = z[:99]
    assert (sampled_interpolant(z, z, torch.tensor(0, device=device), 0, 1.0)[0] == 0).all()
    assert (sampled_interpolant(z, z, torch.tensor(0, device=device), 0, 0.0)[0] > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_drawing_gives_the_gradients_of_interpolating_there(dtype, random, device, monkeypatch):
    monkeypatch.setattr(dispatch, "use_triton", lambda x: True)
    ends = [random(6, 33, dtype=dtype).requires_grad_() for _ in range(2)]
    generator = torch.Generator(device).manual_seed(5)
    t, zt, target = Concave().draw(*ends, generator=generator)
    assert not t.requires_grad
    (zt.float().square().sum() + flow_loss(2 * zt, target)).backward()
    again = [x.detach().clone().requires_grad_() for x in ends]
    zt, target = Concave().interpolate(*again, t)
    (zt.float().square().sum() + flow_loss(2 * zt, target)).backward()
    for x, y in zip(ends, again, strict=True):
        torch.testing.assert_close(x.grad, y.grad)
    repeated = Concave().draw(*ends, generator=generator.manual_seed(5))[0]
    assert torch.equal(repeated, t)
