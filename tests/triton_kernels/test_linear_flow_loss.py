import os

import pytest
import torch
from selection import slow

pytest.importorskip("triton")

from fastnode.flow import Concave, linear_flow_loss  # noqa: E402
from fastnode.ops import dispatch  # noqa: E402
from fastnode.ops.linear_flow_loss import linear_flow_loss_reference  # noqa: E402
from fastnode.triton_kernels import linear_flow_loss as module  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("no CUDA device; test_interpreted.py runs this file", allow_module_level=True)

# The interpreter multiplies the bits of bfloat16 as if they were integers.
DTYPES = [torch.float32, torch.float16] + ([] if INTERPRETED else [torch.bfloat16])
# Batch, width of the output, width of the input: one tile, odd ones, several in each direction.
SIZES = [(1, 1, 1), (5, 3, 70), (130, 7, 9), (129, 257, 33), slow((300, 136, 72))]


@pytest.fixture
def arguments(random):
    def make(size, dtype, bias=True):
        B, D, K = size
        h, z0, z1 = (random(*s, dtype=dtype) for s in ((B, K), (B, D), (B, D)))
        # Outputs of the size of one.
        weight = (random(D, K, dtype=torch.float64) / K**0.5).to(dtype)
        return h, weight, random(D, dtype=dtype) if bias else None, z0, z1, coefficients(random, B)

    return make


def coefficients(random, B):
    return random(4, B, dtype=torch.float32)


def residual(h, weight, bias, z0, z1, coef, dtype):
    """With the layer's output rounded to dtype, as where it is stored."""
    v = torch.nn.functional.linear(*(None if x is None else x.to(dtype) for x in (h, weight, bias)))
    da, db = (row.to(dtype)[:, None] for row in coef[2:])
    return v - (da * z0.to(dtype) + db * z1.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_loss_and_residual_are_as_good_as_torch(
    size, bias, dtype, arguments, assert_as_good_as_torch
):
    inputs = arguments(size, dtype, bias)
    loss_scale, grad_scale = 1 / 3, 2 / 3
    loss, grad = module.linear_flow_loss(*inputs, loss_scale, grad_scale, True, "ieee")
    exact, plain = (residual(*inputs, d) for d in (torch.float64, dtype))
    assert loss.dtype == torch.float32 and grad.dtype == dtype
    assert_as_good_as_torch(grad, grad_scale * plain, grad_scale * exact)
    assert_as_good_as_torch(
        loss, loss_scale * plain.float().square().sum(), loss_scale * exact.square().sum()
    )
    again, none = module.linear_flow_loss(*inputs, loss_scale, grad_scale, False, "ieee")
    assert none is None and torch.equal(again, loss)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("programs", [module.PROGRAMS, 1], ids=["pieces", "one piece"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gradients_are_as_good_as_torch(
    size, programs, dtype, arguments, random, monkeypatch, assert_as_good_as_torch
):
    monkeypatch.setattr(module, "PROGRAMS", programs)
    h, weight, _, _, _, _ = arguments(size, dtype)
    dv = random(size[0], size[1], dtype=dtype)
    wide = [x.double() for x in (dv, h, weight)]
    dh = module.input_gradient(dv, weight, "ieee")
    assert_as_good_as_torch(dh, dv @ weight, wide[0] @ wide[2])
    dw, db = module.weight_gradient(dv, h, True, "ieee")
    assert dw.dtype == db.dtype == dtype
    assert_as_good_as_torch(dw, dv.T @ h, wide[0].T @ wide[1])
    assert_as_good_as_torch(db, dv.sum(dim=0), wide[0].sum(dim=0))
    alone, none = module.weight_gradient(dv, h, False, "ieee")
    assert none is None and torch.equal(alone, dw)


def test_same_input_gives_same_bits(arguments, random):
    inputs = arguments((300, 136, 72), torch.float32)
    dv = random(300, 136, dtype=torch.float32)

    def run():
        return (
            *module.linear_flow_loss(*inputs, 1.0, 2.0, True, "ieee"),
            *module.weight_gradient(dv, inputs[0], True, "ieee"),
            module.input_gradient(dv, inputs[1], "ieee"),
        )

    first = run()
    for _ in range(2):
        for a, b in zip(first, run(), strict=True):
            assert torch.equal(a, b)


def test_more_tiles_than_slots_are_summed(arguments, monkeypatch):
    inputs = arguments((300, 136, 24), torch.float32)
    want = module.linear_flow_loss(*inputs, 1.0, 2.0, False, "ieee")[0]
    monkeypatch.setattr(module, "SLOTS", 4)
    got = module.linear_flow_loss(*inputs, 1.0, 2.0, False, "ieee")[0]
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_number_reaches_the_loss(bad, arguments):
    inputs = arguments((130, 7, 9), torch.float32)
    inputs[0][129, 8] = bad
    assert not module.linear_flow_loss(*inputs, 1.0, 2.0, False, "ieee")[0].isfinite()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_face_gives_all_gradients(dtype, arguments, device, monkeypatch):
    monkeypatch.setattr(dispatch, "use_triton", lambda x: True)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    used = []
    launch = module.linear_flow_loss
    monkeypatch.setattr(module, "linear_flow_loss", lambda *x: used.append(1) or launch(*x))
    h, weight, bias, z0, z1, _ = arguments((70, 16, 24), dtype)
    leaves = [x.requires_grad_() for x in (h, weight, bias, z0, z1)]
    t = torch.linspace(0, 1, 70, device=device)
    zt, target = Concave().interpolate(z0, z1, t)
    loss = linear_flow_loss(h, weight, bias, target)
    (0.5 * loss + zt.float().square().mean()).backward()
    torch.set_float32_matmul_precision(before)
    assert used
    exact = [x.detach().double().requires_grad_() for x in leaves]
    coef = Concave().coefficients(t.double())
    z0, z1 = exact[3:]
    zt = coef[0][:, None] * z0 + coef[1][:, None] * z1
    want = linear_flow_loss_reference(*exact, coef, True)
    (0.5 * want + zt.square().mean()).backward()
    eps = torch.finfo(dtype).eps if dtype != torch.float32 or INTERPRETED else 1e-3
    torch.testing.assert_close(loss.double(), want, rtol=8 * eps, atol=0)
    for ours, true in zip(leaves, exact, strict=True):
        size = true.grad.abs().max()
        torch.testing.assert_close(ours.grad.double(), true.grad, rtol=0, atol=8 * eps * size)


def test_wrong_shapes_are_named(arguments, device, monkeypatch):
    monkeypatch.setattr(dispatch, "use_triton", lambda x: True)
    h, weight, bias, z0, z1, _ = arguments((6, 16, 24), torch.float16)
    _, target = Concave().interpolate(z0, z1, torch.rand(6, device=device))
    for name, wrong in (
        ("h", (h[:5], weight, bias)),
        ("weight", (h, weight[:8], bias)),
        ("bias", (h, weight, bias[:8])),
    ):
        with pytest.raises(ValueError, match=f"^{name} must have shape"):
            linear_flow_loss(*wrong, target)
