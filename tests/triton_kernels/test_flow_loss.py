import os

import pytest
import torch

pytest.importorskip("triton")

from fastnode.triton_kernels import flow_loss as module  # noqa: E402
from fastnode.triton_kernels.flow_loss import flow_loss, scale_  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("no CUDA device; test_interpreted.py runs this file", allow_module_level=True)

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (1030, 1), (5, 7), (2, 63), (3, 1023), (70, 48), (3, 2, 5, 11), (1, 5000)]


@pytest.fixture
def arguments(random):
    def make(shape, dtype):
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        v, z0, z1 = (random(*shape, dtype=dtype) for _ in range(3))
        return v, z0, z1, random(4, shape[0], dtype=wide)

    return make


def residual(v, z0, z1, coef, dtype):
    shape = (-1,) + (1,) * (v.dim() - 1)
    da, db = (row.to(dtype).view(shape) for row in coef[2:])
    return v.to(dtype) - (da * z0.to(dtype) + db * z1.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_and_gradient_are_as_good_as_torch(shape, dtype, arguments, assert_as_good_as_torch):
    inputs = arguments(shape, dtype)
    # Neither scale is a number that float32 holds.
    loss_scale, grad_scale = 1 / 3, 2 / 3
    loss, grad = flow_loss(*inputs, loss_scale, grad_scale, True)
    exact, plain = (residual(*inputs, d) for d in (torch.float64, dtype))
    assert loss.dtype == inputs[3].dtype and grad.dtype == dtype
    assert_as_good_as_torch(grad, grad_scale * plain, grad_scale * exact)
    assert_as_good_as_torch(
        loss, loss_scale * plain.to(loss.dtype).square().sum(), loss_scale * exact.square().sum()
    )


def test_gradient_is_made_only_on_request(arguments):
    inputs = arguments((3, 65), torch.float32)
    loss, grad = flow_loss(*inputs, 1.0, 2.0, False)
    assert grad is None
    assert torch.equal(loss, flow_loss(*inputs, 1.0, 2.0, True)[0])


def test_same_input_gives_same_bits(arguments):
    inputs = arguments((300, 33), torch.float32)
    first = flow_loss(*inputs, 1.0, 2.0, True)
    for _ in range(3):
        for a, b in zip(first, flow_loss(*inputs, 1.0, 2.0, True), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("programs", [1, 3])
def test_programs_share_the_tiles_evenly(programs, arguments, monkeypatch, assert_as_good_as_torch):
    monkeypatch.setattr(module, "MAX_PROGRAMS", programs)
    inputs = arguments((7, 2500), torch.float32)
    loss, grad = flow_loss(*inputs, 1.0, 2.0, True)
    exact, plain = (residual(*inputs, d) for d in (torch.float64, torch.float32))
    assert_as_good_as_torch(grad, 2 * plain, 2 * exact)
    assert_as_good_as_torch(loss, plain.square().sum(), exact.square().sum())


def test_sums_of_half_precision_states_do_not_overflow(device):
    v = torch.full((4, 600), 200.0, dtype=torch.float16, device=device)
    zero = torch.zeros_like(v)
    loss, _ = flow_loss(v, zero, zero, torch.zeros(4, 4, device=device), 1.0, 2.0, False)
    assert loss.item() == 4 * 600 * 200.0**2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_number_reaches_the_loss(bad, arguments):
    inputs = arguments((3, 65), torch.float32)
    inputs[0][2, 64] = bad
    loss, _ = flow_loss(*inputs, 1.0, 2.0, True)
    assert not loss.isfinite()


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0,)], ids=str)
def test_empty_states_have_the_loss_of_an_empty_sum(shape, arguments):
    inputs = arguments(shape, torch.float32)
    loss, grad = flow_loss(*inputs, 1.0, 2.0, True)
    assert loss.shape == () and loss.item() == 0 and grad.shape == shape
    assert flow_loss(*inputs, float("inf"), float("inf"), False)[0].isnan()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 63, 3000])
def test_scaling_is_as_good_as_torch(count, dtype, random, assert_as_good_as_torch):
    x = random(count, dtype=dtype)
    before = x.clone()
    g = torch.tensor(-0.7, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    assert scale_(x, g.to(x.device)) is x
    assert_as_good_as_torch(x, before * g.to(x), before.double() * g.to(before.device))


def test_scaling_walks_over_all_blocks(random, monkeypatch):
    monkeypatch.setattr(module, "MAX_PROGRAMS", 2)
    x = random(9001, dtype=torch.float32)
    before = x.clone()
    scale_(x, torch.tensor(2.0, device=x.device))
    assert torch.equal(x, 2 * before)


def test_scaling_writes_nothing_outside_a_view(device):
    buffer = torch.ones(5000, device=device)
    scale_(buffer[1000:3001], torch.tensor(3.0, device=device))
    assert (buffer[:1000] == 1).all() and (buffer[3001:] == 1).all()
    assert (buffer[1000:3001] == 3).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scaling_by_one_leaves_every_bit(dtype, random):
    x = random(3000, dtype=dtype)
    # A signalling NaN would come out of any multiplication as a quiet one.
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    exponent = torch.tensor(float("inf"), dtype=dtype).view(bits).item()
    x.view(bits)[7] = exponent + 1
    before = x.view(bits).clone()
    scale_(x, torch.tensor(1.0, dtype=dtype, device=x.device))
    assert torch.equal(x.view(bits), before)
