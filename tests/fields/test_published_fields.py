"""Vector fields of published models, written from their papers, against PyTorch in float32."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from selection import slow
from torch import Tensor, nn

import fastnode

pytestmark = pytest.mark.skipif(not fastnode.extension.AVAILABLE, reason="no C++ extension")


class ConcatLinear(nn.Module):
    """FFJORD (Grathwohl et al., arXiv 1810.01367): a layer whose bias depends on the time."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)
        self.bias = nn.Linear(1, outputs, bias=False)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.layer(x) + self.bias(t.view(1, 1))


class ConcatSquash(ConcatLinear):
    """Of the same paper: it has a gate as well."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs)
        self.gate = nn.Linear(1, outputs)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        t = t.view(1, 1)
        return self.layer(x) * torch.sigmoid(self.gate(t)) + self.bias(t)


class Flow(nn.Module):
    """FFJORD's state: a point and the change of its log-density, by Hutchinson's estimate of the
    trace with one draw for each solve."""

    def __init__(self, layer: type[nn.Module], width: int = 64):
        super().__init__()
        sizes = [2, width, width, 2]
        self.layers = nn.ModuleList(layer(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.register_buffer("noise", torch.randn(1, 2))

    def forward(self, t: Tensor, state: Tensor) -> Tensor:
        with torch.enable_grad():
            x = state[:, :2]
            x = x if x.requires_grad else x.detach().requires_grad_()
            f = x
            for i, layer in enumerate(self.layers):
                f = layer(t, F.softplus(f) if i else f)
            noise = self.noise.expand_as(f)
            (along,) = torch.autograd.grad(f, x, noise, create_graph=True)
        return torch.cat([f, -(along * noise).sum(1, keepdim=True)], 1)


class AugmentedMlp(nn.Module):
    """Dupont et al., arXiv 1904.01681: more dimensions than the data has, and the time as one of
    the inputs."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.a = nn.Linear(2 + 5 + 1, width)
        self.b = nn.Linear(width, width)
        self.c = nn.Linear(width, 2 + 5)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        time = torch.ones(y.shape[0], 1, dtype=y.dtype) * t
        return self.c(F.relu(self.b(F.relu(self.a(torch.cat([time, y], 1))))))


class AugmentedConvolutions(nn.Module):
    """Of the same paper: each convolution gets the time as a channel."""

    def __init__(self, channels: int = 6, width: int = 12):
        super().__init__()
        self.a = nn.Conv2d(channels + 1, width, 1)
        self.b = nn.Conv2d(width + 1, width, 3, padding=1)
        self.c = nn.Conv2d(width + 1, channels, 1)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        for i, layer in enumerate((self.a, self.b, self.c)):
            y = F.relu(y) if i else y
            y = layer(torch.cat([torch.ones_like(y[:, :1]) * t, y], 1))
        return y


class LatentOde(nn.Module):
    """The dynamics of Chen et al., arXiv 1806.07366, section 5: they do not depend on the time."""

    def __init__(self, latent: int = 4, width: int = 20):
        super().__init__()
        self.a = nn.Linear(latent, width)
        self.b = nn.Linear(width, width)
        self.c = nn.Linear(width, latent)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.c(F.elu(self.b(F.elu(self.a(y)))))


class GruOdeBayes(nn.Module):
    """De Brouwer et al., arXiv 1905.12374: a GRU's change between observations, whose input is
    what the state predicts."""

    def __init__(self, inputs: int = 3, width: int = 24):
        super().__init__()
        self.predict = nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, inputs))
        self.x = nn.ModuleList(nn.Linear(inputs, width) for _ in range(3))
        self.h = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(3))

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        p = self.predict(h)
        r = torch.sigmoid(self.x[0](p) + self.h[0](h))
        z = torch.sigmoid(self.x[1](p) + self.h[1](h))
        u = torch.tanh(self.x[2](p) + self.h[2](r * h))
        return (1 - z) * (u - h)


class HamiltonianNet(nn.Module):
    """Greydanus et al., arXiv 1906.01563: the symplectic gradient of a learned energy."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.energy = nn.Sequential(
            nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(),
            nn.Linear(width, 1, bias=False),
        )  # fmt: skip
        self.register_buffer("m", torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            y = y if y.requires_grad else y.detach().requires_grad_()
            (g,) = torch.autograd.grad(self.energy(y).sum(), y, create_graph=True)
        return g @ self.m.t()


def solved(field: nn.Module, y0: Tensor, engine: str) -> list[Tensor]:
    """States at five times by eight steps of rk4, and the gradients of y0 and all parameters."""
    y0 = y0.clone().requires_grad_()
    ts = torch.linspace(0, 1, 5, dtype=y0.dtype)
    ys = fastnode.solve(field, y0, ts, method="rk4", steps=8, engine=engine).ys
    found = torch.autograd.grad(ys.square().mean(), [y0, *field.parameters()], allow_unused=True)
    held = (y0, *field.parameters())
    return [
        ys.detach(),
        *(torch.zeros_like(x) if g is None else g for x, g in zip(held, found, strict=True)),
    ]


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        slow(lambda: Flow(ConcatSquash), (3,)),
        slow(lambda: Flow(ConcatLinear), (3,)),
        slow(AugmentedMlp, (7,)),
        slow(AugmentedConvolutions, (6, 8, 8)),
        (LatentOde, (4,)),
        slow(GruOdeBayes, (24,)),
        slow(HamiltonianNet, (2,)),
    ],
    ids=[
        "ffjord squash", "ffjord linear", "anode", "anode convolutions", "latent ode",
        "gru-ode-bayes", "hnn",
    ],
)  # fmt: skip
def test_published_fields_are_solved_as_by_torch(make, shape):
    """As close to the solve in float64 as eager PyTorch in float32 is, about."""
    torch.manual_seed(0)
    field, y0 = make(), torch.randn(33, *shape)
    wanted = solved(copy.deepcopy(field).double(), y0.double(), "native")
    plain = solved(field, y0, "native")
    found = solved(fastnode.compile_field(field, y0), y0, "fused")
    assert len(found) == len(wanted)
    for ours, eager, want in zip(found, plain, wanted, strict=True):
        scale = want.abs().max()
        allowed = 1e-5 * scale + 4 * (eager - want).abs().max()
        assert (ours - want).abs().max() <= allowed
