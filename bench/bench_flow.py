"""The flow part of a training step against plain PyTorch and torch.compile.

The part is: interpolant, a field that is one multiplication, loss, and backward to z0 and z1, all
through autograd. Two compiled references stand beside each other:

* ``compile``: the field is opaque, as every field of matrix products or convolutions is to the
  compiler: what comes before and after it is compiled, it itself is not fused with them;
* ``compile, field fused``: the compiler sees that the field is one multiplication, fuses it with
  both sides, and never stores z_t, v or their gradients. It moves 6 tensors where eager code moves
  at least 15 (11 of ours and 4 of the field). No real field allows that.

``kernels`` calls the ops without autograd: interpolant, loss with gradient, and the one backward
pass. Its reference is the same plain PyTorch training step as above; ``plain, no autograd`` is the
same arithmetic written by hand.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from ratio import compare
from torch import Tensor

from fastnode.flow import Linear, flow_loss

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(128, 64), (1024, 512), (256, 3072), (64, 65536)]
WEIGHT = torch.tensor(0.7, device=DEVICE)
PATH = Linear()


@torch.library.custom_op("bench::field", mutates_args=())
def opaque(z: Tensor) -> Tensor:
    return z * WEIGHT


opaque.register_fake(torch.empty_like)
opaque.register_autograd(lambda ctx, grad: opaque(grad))


def visible(z: Tensor) -> Tensor:
    return z * WEIGHT


def plain(z0: Tensor, z1: Tensor, t: Tensor, field=visible) -> Tensor:
    s = t.view(-1, 1)
    zt = (1 - s) * z0 + s * z1
    return ((field(zt) - (z1 - z0)) ** 2).mean()


def plain_mse(z0: Tensor, z1: Tensor, t: Tensor) -> Tensor:
    return F.mse_loss(torch.lerp(z0, z1, t.view(-1, 1)) * WEIGHT, z1 - z0)


def ours(z0: Tensor, z1: Tensor, t: Tensor) -> Tensor:
    zt, target = PATH.interpolate(z0, z1, t)
    return flow_loss(zt * WEIGHT, target)


def step(function, z0: Tensor, z1: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    z0.grad = z1.grad = None
    loss = function(z0, z1, t)
    loss.backward()
    assert z0.grad is not None and z1.grad is not None
    return loss.detach(), z0.grad, z1.grad


def batch(shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z0, z1 = (torch.randn(shape, generator=generator).to(DEVICE) for _ in range(2))
    t = torch.rand(shape[0], generator=generator).to(DEVICE)
    return z0.requires_grad_(), z1.requires_grad_(), t


def agree(got, want) -> None:
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_training_step(benchmark, shape):
    inputs = batch(shape)
    torch._dynamo.reset()
    references = {
        "plain": plain,
        "plain, lerp and mse_loss": plain_mse,
        "compile": torch.compile(lambda a, b, t: plain(a, b, t, opaque), dynamic=False),
        "compile, field fused": torch.compile(plain, dynamic=False),
    }
    want = [x.clone() for x in step(plain, *inputs)]
    for function in (ours, *references.values()):
        agree(step(function, *inputs), want)
    ratios = compare(
        benchmark,
        "flow step",
        str(shape),
        lambda: step(ours, *inputs),
        {name: lambda f=f: step(f, *inputs) for name, f in references.items()},
    )
    assert all(ratio > 0 for ratio in ratios.values())


@torch.no_grad()
def kernels(z0: Tensor, z1: Tensor, t: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    ops = torch.ops.fastnode
    coef = ops.path_coefficients(t, 0, True)
    zt, stand_in = ops.interpolant(z0, z1, coef, False)
    loss, grad = ops.flow_loss(v, stand_in, z0, z1, coef, True, True)
    return loss, *ops.interpolant_backward(zt, grad, coef, -1.0, True, True)


@torch.no_grad()
def by_hand(z0: Tensor, z1: Tensor, t: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    s = t.view(-1, 1)
    zt = (1 - s) * z0 + s * z1
    residual = v - (z1 - z0)
    grad = residual * (2 / residual.numel())
    return (residual**2).mean(), (1 - s) * zt + grad, s * zt - grad


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_alone(benchmark, shape):
    z0, z1, t = batch(shape)
    x0, x1 = z0.detach(), z1.detach()
    v = torch.randn(shape, device=DEVICE)
    spare = [torch.empty_like(x0) for _ in range(6)]
    half = x0.numel() // 2

    def copies():
        """Eleven passes over one tensor, as the kernels read and write: five copies and a half."""
        for to in spare[:5]:
            to.copy_(x0)
        spare[5].view(-1)[:half].copy_(x0.view(-1)[:half])

    agree(kernels(x0, x1, t, v), by_hand(x0, x1, t, v))
    ratios = compare(
        benchmark,
        "flow kernels",
        str(shape),
        lambda: kernels(x0, x1, t, v),
        {
            "plain": lambda: step(plain, z0, z1, t),
            "plain, no autograd": lambda: by_hand(x0, x1, t, v),
            "copies of as many bytes": copies,
        },
    )
    assert all(ratio > 0 for ratio in ratios.values())
