"""The flow part of a training step, by fastnode and by plain PyTorch.

Not in a file of benchmarks: pytest imports those under a name of its own, and an operator that is
defined a second time, by whoever imports such a file, takes the first definition's memory away.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnode.flow import Linear, flow_loss

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
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
