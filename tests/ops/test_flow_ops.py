"""The registered ops behind the flow functions: opcheck, references, memory."""

import pytest
import torch
from selection import slow
from torch.library import opcheck

from fastnode import extension
from fastnode.flow import Linear
from fastnode.ops import flow_loss as loss_op
from fastnode.ops import interpolant as path_op

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=f"extension {extension.REASON}")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def arguments(dtype=torch.float32, shape=(4, 6), grad=True):
    z0, z1, v = (torch.randn(shape, dtype=dtype, requires_grad=grad) for _ in range(3))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return z0, z1, v, Linear().coefficients(torch.rand(shape[0], dtype=wide))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stored", [False, slow(True)], ids=["stand-in", "stored"])
def test_interpolant_passes_opcheck(dtype, stored):
    z0, z1, _, coef = arguments(dtype)
    opcheck(torch.ops.fastnode.interpolant.default, (z0, z1, coef, stored))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mean", [slow(False), True], ids=["sum", "mean"])
def test_flow_loss_passes_opcheck(dtype, mean):
    z0, z1, v, coef = arguments(dtype)
    stand_in = torch.zeros_like(v, requires_grad=True)
    inputs = (v, stand_in, z0.detach(), z1.detach(), coef, mean, True)
    opcheck(torch.ops.fastnode.flow_loss.default, inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_flow_loss_of_a_stored_target_passes_opcheck(dtype):
    v, target = arguments(dtype)[2], torch.randn(4, 6, dtype=dtype)
    op = torch.ops.fastnode.flow_loss.default
    opcheck(op, (v, target, target, None, None, True, True))
    got = op(v, target, target, None, None, True, True)
    want = loss_op._flow_loss_any(v.detach(), target, target, None, None, True, True)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, check_dtype=True)
    with pytest.raises(ValueError, match="passed together"):
        op(v, target, target, target, None, True, True)


@pytest.mark.parametrize("shape", [(5, 1), (3, 129), (0, 2)], ids=str)
def test_squared_error_is_that_of_torch(shape):
    x, y = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
    got, want = loss_op.squared_error(x, y), torch.nn.functional.mse_loss(x, y)
    torch.testing.assert_close(got, want, equal_nan=True)
    for a, b in zip(*(torch.autograd.grad(z, (x, y)) for z in (got, want)), strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)
    if x.numel() in range(1, 10):
        assert torch.autograd.gradcheck(loss_op.squared_error, (x, y))
        assert torch.autograd.gradgradcheck(loss_op.squared_error, (x, y))
    assert not loss_op.squared_error(x.detach(), y.detach()).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_sampled_coefficients_are_those_of_the_draws(dtype, kind):
    draws = torch.rand(2, 50, dtype=dtype)
    op = torch.ops.fastnode.sampled_coefficients.default
    opcheck(op, (draws, kind, 0.3))
    got, want = op(draws, kind, 0.3), path_op._sampled_coefficients_any(draws, kind, 0.3)
    assert torch.equal(got[0], want[0]) and 0 < (got[0] == 0).sum() < 50
    torch.testing.assert_close(got[1], want[1])
    with pytest.raises(ValueError, match="draws must have shape"):
        op(draws[:1], kind, 0.3)
    with pytest.raises(TypeError, match="draws must be float32 or float64"):
        op(draws.half(), kind, 0.3)


def test_the_zero_of_stand_ins_is_made_once():
    with torch.inference_mode():
        first = path_op._zero_like(torch.ones(2, 3))
    second = path_op._zero_like(torch.ones(4))
    assert first.shape == (2, 3) and not first.any() and not first.is_inference()
    assert first.data_ptr() == second.data_ptr()
    assert path_op._zero_like(torch.ones(4).double()).dtype == torch.float64


def test_helper_ops_pass_opcheck():
    z0, z1, _, coef = arguments(grad=False)
    opcheck(torch.ops.fastnode.path_coefficients.default, (torch.rand(5), 1, True))
    opcheck(torch.ops.fastnode.scale_.default, (z0, torch.tensor(2.0)))
    for grads in ((z0, z1), (None, z1), (z0, None)):
        backward = (*grads, coef, -1.0, True, False)
        opcheck(torch.ops.fastnode.interpolant_backward.default, backward)


def test_sampled_interpolant_passes_opcheck():
    z0, z1, _, _ = arguments()
    op = torch.ops.fastnode.sampled_interpolant.default
    opcheck(op, (z0, z1, torch.tensor(7), 1, 0.2))
    t, coef, zt, stand_in = op(z0, z1, torch.tensor(7), 1, 0.2)
    assert not t.requires_grad and not coef.requires_grad
    weights = torch.randn_like(zt)
    first = torch.autograd.grad((zt * weights + 2 * stand_in).sum(), (z0, z1), create_graph=True)
    ours = coef[0][:, None] * weights - 2 * coef[2][:, None]
    torch.testing.assert_close(first[0], ours)
    again = torch.autograd.grad((op(z0, z1, torch.tensor(7), 1, 0.2)[2] * weights).sum(), z1)
    torch.testing.assert_close(again[0], coef[1][:, None] * weights)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_kernels_agree_with_their_references(dtype, kind):
    z0, z1, v, _ = arguments(dtype, (5, 129), grad=False)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    t = torch.rand(5, dtype=wide)
    coef = path_op.path_coefficients(t, kind, True)
    torch.testing.assert_close(coef, path_op.path_coefficients_reference(t, kind, True))
    got = path_op.interpolant(z0, z1, coef, True)
    want = path_op.interpolant_reference(z0, z1, coef, True)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    loss = loss_op.flow_loss(v, got[1], z0, z1, coef, True)
    reference = loss_op.flow_loss_reference(v, z0, z1, coef, True)
    # In low precision the reference rounds u before it subtracts, the kernel does not.
    torch.testing.assert_close(loss, reference, rtol=1e-6 if v.element_size() > 2 else 1e-2, atol=0)


def test_other_devices_get_the_plain_implementation():
    z0, z1, v, coef = arguments(grad=False)
    zt, _ = path_op._interpolant_any(z0, z1, coef, False)
    torch.testing.assert_close(zt, path_op.interpolant(z0, z1, coef, False)[0])
    for grads in ((z0, z1), (None, z1), (z0, None)):
        got = path_op._interpolant_backward_any(*grads, coef, -1.0, True, True)
        want = torch.ops.fastnode.interpolant_backward.default(*grads, coef, -1.0, True, True)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)
    got = loss_op._flow_loss_any(v, zt, z0, z1, coef, True, True)
    want = torch.ops.fastnode.flow_loss.default(v, zt, z0, z1, coef, True, True)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_number_survives_loading_and_storing(dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    z = every.reshape(256, 256)
    coef = Linear().coefficients(torch.zeros(256))
    coef[1] = 0
    back = torch.ops.fastnode.interpolant_backward.default(z, None, coef, 1.0, True, False)[0]
    torch.testing.assert_close(back, z, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_storing_in_16_bits_rounds_as_torch_does(dtype):
    z = torch.randn(64, 1024).to(dtype)
    scales = torch.logspace(-9, 6, 64)
    coef = torch.zeros(4, 64)
    coef[0] = scales
    got = torch.ops.fastnode.interpolant_backward.default(z, None, coef, 1.0, True, False)[0]
    assert torch.equal(got, (z.float() * scales[:, None]).to(dtype))


def test_flow_ops_refuse_bad_arguments_before_kernels():
    z0, z1, v, coef = arguments(grad=False)
    with pytest.raises(ValueError, match="coef must have shape"):
        torch.ops.fastnode.interpolant.default(z0, z1, coef[:3], False)
    with pytest.raises(ValueError, match="one shape"):
        torch.ops.fastnode.interpolant.default(z0, z1[:, 1:], coef, False)
    with pytest.raises(TypeError, match="coef must be"):
        torch.ops.fastnode.interpolant.default(z0, z1, coef.double(), False)
    with pytest.raises(ValueError, match="one shape"):
        torch.ops.fastnode.flow_loss.default(v[1:], v, z0, z1, coef, True, True)


def test_freed_results_are_reused_and_never_pile_up():
    from fastnode import _C

    extension.empty_cache()
    assert _C.pool_statistics()["kept"] == 0
    before = _C.pool_statistics()["in_use"]
    for size in (300_000, 400_000, 300_000, 500_000):
        for _ in range(3):
            z0, z1, _, coef = arguments(shape=(2, size // 2), grad=False)
            zt, ut = path_op.interpolant(z0, z1, coef, True)
            assert _C.pool_statistics()["in_use"] - before == 8 * size
            del zt, ut
        statistics = _C.pool_statistics()
        assert statistics["in_use"] + statistics["kept"] <= statistics["peak"]
    extension.empty_cache()
    assert _C.pool_statistics() == {"in_use": before, "kept": 0, "peak": before}
