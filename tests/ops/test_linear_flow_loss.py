"""linear_flow_loss on the CPU: the face, and the op with plain PyTorch in place of its kernels."""

import pytest
import torch
import torch.nn.functional as F
from selection import slow
from torch.library import opcheck

from fastnode import extension
from fastnode.flow import Convex, flow_loss, linear_flow_loss
from fastnode.ops import dispatch
from fastnode.ops import linear_flow_loss as ops

needs_extension = pytest.mark.skipif(
    not extension.AVAILABLE, reason=f"extension {extension.REASON}"
)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def arguments(dtype=torch.float64, batch=4, width=6, inputs=5, bias=True):
    torch.manual_seed(0)
    shapes = [(batch, inputs), (width, inputs), (width,), (batch, width), (batch, width)]
    h, weight, b, z0, z1 = (torch.randn(s, dtype=dtype, requires_grad=True) for s in shapes)
    t = torch.rand(batch, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    return h, weight, b if bias else None, z0, z1, t


def by_op(h, weight, bias, z0, z1, t, mean=True):
    """As on a device with kernels."""
    _, target = Convex().interpolate(z0, z1, t)
    return ops.linear_flow_loss(
        h, weight, bias, target.stand_in, target.z0, target.z1, target.coef, mean
    )


def test_precision_is_read_where_the_newer_setting_was_used():
    matmul = torch.backends.cuda.matmul
    assert not dispatch.tf32_allowed()
    try:
        torch.set_float32_matmul_precision("high")
        assert dispatch.tf32_allowed()
        torch.set_float32_matmul_precision("highest")
        assert not dispatch.tf32_allowed()
        matmul.fp32_precision = "tf32"
        assert dispatch.tf32_allowed()
    finally:
        matmul.fp32_precision = "none"


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("bias", [True, False])
def test_loss_is_that_of_the_layers_output(bias, reduction):
    h, weight, b, z0, z1, t = arguments(bias=bias)
    zt, target = Convex().interpolate(z0, z1, t)
    want = flow_loss(F.linear(h, weight, b), target, reduction)
    assert torch.equal(linear_flow_loss(h, weight, b, target, reduction), want)
    stored = linear_flow_loss(h, weight, b, target.velocity(), reduction)
    torch.testing.assert_close(stored, want)


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, slow(False)])
def test_ops_pass_opcheck(bias, dtype):
    h, weight, b, z0, z1, t = arguments(dtype, bias=bias)
    stand_in = torch.zeros_like(z0, requires_grad=True)
    coef = Convex().coefficients(t)
    inputs = (h, weight, b, stand_in, z0.detach(), z1.detach(), coef, True, True)
    opcheck(torch.ops.fastnode.linear_flow_loss.default, inputs)
    for wanted in ((True, True, True), (False, True, False), (True, False, True)):
        opcheck(
            torch.ops.fastnode.linear_gradients.default,
            (z0.detach(), h.detach(), weight.detach(), *wanted),
        )


@needs_extension
@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_exact_to_second_order(bias, mean):
    inputs = arguments(bias=bias)
    inputs[-1].requires_grad_()
    call = lambda *x: by_op(*x, mean=mean)  # noqa: E731
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)
    reference = lambda h, w, b, z0, z1, t: ops.linear_flow_loss_reference(  # noqa: E731
        h, w, b, z0, z1, Convex().coefficients(t), mean
    )
    assert torch.autograd.gradcheck(reference, inputs)
    torch.testing.assert_close(call(*inputs), reference(*inputs))


@needs_extension
@pytest.mark.parametrize("scale", [1.0, 0.25], ids=["one", "scaled"])
def test_flow_loss_backward_repeats_with_retain_graph(scale):
    h, weight, b, z0, z1, t = arguments()
    leaves = [h, weight, b, z0, z1]
    want = torch.autograd.grad(scale * by_op(*leaves, t), leaves, create_graph=True)
    loss = scale * by_op(*leaves, t)
    for keep in (True, True, False):
        got = torch.autograd.grad(loss, leaves, retain_graph=keep)
        for a, c in zip(got, want, strict=True):
            torch.testing.assert_close(a, c.detach())


@needs_extension
def test_float16_gradients_survive_loss_scaling():
    h, weight, b, z0, z1, t = arguments(torch.float16, batch=64, width=512)
    loss = by_op(h, weight, b, z0, z1, t)
    (loss * 2.0**14).backward()
    exact = [x.detach().double().requires_grad_() for x in (h, weight, b, z0, z1)]
    ops.linear_flow_loss_reference(*exact, Convex().coefficients(t.double()), True).backward()
    for x, y in zip((h, weight, b, z0, z1), exact, strict=True):
        assert x.grad is not None and y.grad is not None
        torch.testing.assert_close(x.grad.double() / 2**14, y.grad, rtol=0.02, atol=2e-6)


@needs_extension
def test_only_asked_for_gradients_are_made():
    h, weight, b, z0, z1, t = (x.detach() for x in arguments())
    assert not by_op(h, weight, b, z0, z1, t).requires_grad
    weight.requires_grad_()
    by_op(h, weight, b, z0, z1, t).backward()
    assert weight.grad is not None and h.grad is None


def test_kernels_are_for_what_they_can_do():
    h, weight, b, z0, _, _ = arguments(torch.bfloat16, inputs=8, width=8)
    assert not ops.runs_fused(h, weight, b, z0)


def test_bad_arguments_are_named():
    h, weight, b, z0, z1, t = arguments()
    _, target = Convex().interpolate(z0, z1, t)
    with pytest.raises(ValueError, match="v must have the target's shape"):
        linear_flow_loss(h[:3], weight, b, target)
    with pytest.raises(ValueError, match="reduction must be one of"):
        linear_flow_loss(h, weight, b, target, "max")
    with pytest.raises(TypeError, match="target must be a Target or a Tensor"):
        linear_flow_loss(h, weight, b, 3.0)
