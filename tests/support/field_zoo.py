"""Vector fields as people write them: what compile_field takes, and what it must refuse."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from fastnode.nn import MLPField


class Zoo(nn.Module):
    """A field given by its modules and a function of (self, t, y)."""

    def __init__(self, forward: Callable, tensors: dict[str, torch.Tensor], **modules: nn.Module):
        super().__init__()
        self.call = forward
        for name, module in modules.items():
            setattr(self, name, module)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, t, y):
        return self.call(self, t, y)


def field(forward, tensors=None, **modules):
    return Zoo(forward, tensors or {}, **modules)


def mlp(*sizes, activation=nn.Tanh):
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False)):
        layers += [activation()] if i else []
        layers.append(nn.Linear(a, b))
    return nn.Sequential(*layers)


def differentiable(y):
    return y if y.requires_grad else y.detach().requires_grad_()


class ConcatSquash(nn.Module):
    """The layer of FFJORD (arXiv 1810.01367)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)
        self.gate = nn.Linear(1, outputs)
        self.bias = nn.Linear(1, outputs, bias=False)

    def forward(self, t, x):
        t = t.reshape(1, 1)
        return self.layer(x) * torch.sigmoid(self.gate(t)) + self.bias(t)


class ExactTrace(nn.Module):
    """A continuous normalising flow of two dimensions with the exact trace by autograd."""

    def __init__(self, hidden=16):
        super().__init__()
        sizes = (2, hidden, hidden, 2)
        self.layers = nn.ModuleList(
            ConcatSquash(a, b) for a, b in zip(sizes, sizes[1:], strict=False)
        )

    def net(self, t, x):
        for i, layer in enumerate(self.layers):
            x = layer(t, torch.tanh(x) if i else x)
        return x

    def forward(self, t, y):
        with torch.enable_grad():
            x = differentiable(y[:, :2])
            f, trace = self.net(t, x), 0
            for i in range(2):
                (row,) = torch.autograd.grad(f[:, i].sum(), x, create_graph=True)
                trace = trace + row[:, i]
        return torch.cat([f, -trace[:, None]], 1)


class Hamiltonian(nn.Module):
    """Of Greydanus et al., arXiv 1906.01563."""

    def __init__(self):
        super().__init__()
        self.energy = mlp(4, 16, 1)

    def forward(self, t, y):
        with torch.enable_grad():
            y = differentiable(y)
            (g,) = torch.autograd.grad(self.energy(y).sum(), y, create_graph=True)
        return torch.cat([g[:, 2:], -g[:, :2]], 1)


class Hutchinson(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp(3, 16, 2, activation=nn.Softplus)
        self.register_buffer("e", torch.randn(1, 2))

    def forward(self, t, y):
        with torch.enable_grad():
            x = differentiable(y[:, :2])
            f = self.net(torch.cat([x, t.expand(len(x), 1)], 1))
            (v,) = torch.autograd.grad(f, x, self.e.expand_as(f), create_graph=True)
        return torch.cat([f, -(v * self.e).sum(1, keepdim=True)], 1)


class Residual(nn.Module):
    def __init__(self, width=16, depth=2):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, t, y):
        for norm, layer in zip(self.norms, self.layers, strict=True):
            y = y + layer(F.silu(norm(y)))
        return torch.tanh(y)


class Attention(nn.Module):
    """Attention between the nodes of a graph, and mixing by its adjacency."""

    def __init__(self, width=8):
        super().__init__()
        self.q, self.k, self.v, self.o, self.m = (nn.Linear(width, width) for _ in range(5))
        adjacency = (torch.rand(5, 5) < 0.5).float() + torch.eye(5)
        self.register_buffer("adjacency", adjacency / adjacency.sum(1, keepdim=True))

    def forward(self, t, h):
        weights = torch.softmax(self.q(h) @ self.k(h).transpose(-1, -2) / 3, -1)
        return torch.tanh(self.o(weights @ self.v(h)) + self.m(self.adjacency @ h))


class GruOde(nn.Module):
    """Of de Brouwer et al., arXiv 1905.12374."""

    def __init__(self, width=12):
        super().__init__()
        self.r, self.z, self.u = (nn.Linear(width, width) for _ in range(3))

    def forward(self, t, h):
        r, z = torch.sigmoid(self.r(h)), torch.sigmoid(self.z(h))
        return (1 - z) * (torch.tanh(self.u(r * h)) - h)


def hyper(self, t, y):
    """The hypernetwork of FFJORD's time-dependent fields."""
    p = self.net(t.reshape(1, 1)).reshape(-1)
    w, u = p[:8].reshape(4, 2, 1), p[8:16].reshape(4, 1, 2)
    gate, bias = torch.sigmoid(p[16:24].reshape(4, 1, 2)), p[24:].reshape(4, 1, 1)
    h = torch.tanh(torch.matmul(y[None].expand(4, -1, -1), w) + bias)
    return torch.matmul(h, u * gate).mean(0)


def message_passing(self, t, y):
    h = y.reshape(-1, 4, 2)
    moved = torch.zeros_like(h).index_add(1, self.target, torch.tanh(h[:, self.source]))
    return self.layer(moved.reshape(-1, 8))


def time_features(self, t, y):
    features = torch.cat([torch.sin(self.w * t), torch.cos(self.w * t)])
    return self.net(torch.cat([y, features.expand(len(y), 6)], 1))


def with_time_channel(self, t, y):
    h = F.softplus(self.a(torch.cat([torch.ones_like(y[:, :1]) * t, y], 1)))
    return self.b(torch.cat([torch.ones_like(h[:, :1]) * t, h], 1))


def lotka_volterra(self, t, y):
    a, b, c, d = self.rates.weight[0]
    x, z = y[..., 0], y[..., 1]
    return torch.stack([a * x - b * x * z, -c * z + d * x * z], -1)


def lstm(self, t, y):
    h, c = self.cell(y[:, :4], (y[:, :4], y[:, 4:]))
    return torch.cat([h, c], 1) - y


def mixture(self, t, y):
    weights = torch.softmax(self.gate(y), -1)
    return sum(
        weights[:, i : i + 1] * act(layer(y))
        for i, (act, layer) in enumerate(
            zip((torch.tanh, torch.relu, torch.sigmoid), self.experts, strict=True)
        )
    )


def conv_block(self, t, y):
    return self.b(torch.tanh(self.norm(self.a(y))))


def linear(width=4):
    return nn.Linear(width, width)


def counted(self, t, y):
    self.calls = getattr(self, "calls", 0) + 1
    return self.layer(y)


def changed_in_place(self, t, y):
    y.mul_(0.9)
    return self.layer(y)


#: For each name what makes the field, and the shape of a sample.
FIELDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: field(lambda s, t, y: s.net(y), net=mlp(6, 20, 6)), (6,)),
    "time columns": (lambda: MLPField(6, 12, 3, "tanh"), (6,)),
    "residual": (Residual, (16,)),
    "exact trace": (ExactTrace, (3,)),
    "hutchinson": (Hutchinson, (3,)),
    "hamiltonian": (Hamiltonian, (4,)),
    "gru-ode": (GruOde, (12,)),
    "attention": (Attention, (5, 8)),
    "hypernetwork": (lambda: field(hyper, net=mlp(1, 8, 28)), (2,)),
    "convolutions": (
        lambda: field(
            conv_block,
            a=nn.Conv2d(4, 8, 3, padding=1),
            norm=nn.GroupNorm(2, 8),
            b=nn.Conv2d(8, 4, 3, padding=1),
        ),
        (4, 5, 5),
    ),
    "time channel": (
        lambda: field(
            with_time_channel,
            a=nn.Conv2d(3, 4, 3, padding=1),
            b=nn.Conv2d(5, 2, 3, padding=1),
        ),
        (2, 4, 4),
    ),
    "strided": (
        lambda: field(
            lambda s, t, y: s.b(F.elu(s.a(y))),
            a=nn.Conv2d(2, 4, 4, stride=2, padding=1),
            b=nn.ConvTranspose2d(4, 2, 4, stride=2, padding=1),
        ),
        (2, 6, 6),
    ),
    "dilated groups": (
        lambda: field(
            lambda s, t, y: s.b(torch.tanh(s.a(y))),
            a=nn.Conv1d(4, 8, 3, padding=2, dilation=2, groups=2),
            b=nn.Conv1d(8, 4, 1),
        ),
        (4, 9),
    ),
    "circular": (
        lambda: field(
            lambda s, t, y: torch.tanh(s.a(y)),
            a=nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular"),
        ),
        (2, 6),
    ),
    "pooling": (
        lambda: field(
            lambda s, t, y: s.b(F.interpolate(F.avg_pool2d(s.a(y), 2), scale_factor=2)),
            a=nn.Conv2d(2, 4, 3, padding=1),
            b=nn.Conv2d(4, 2, 1),
        ),
        (2, 4, 4),
    ),
    "instance norm": (
        lambda: field(lambda s, t, y: torch.tanh(s.n(y)), n=nn.InstanceNorm1d(3, affine=True)),
        (3, 7),
    ),
    "batch norm in eval": (
        lambda: field(lambda s, t, y: s.n(s.a(y)), a=linear(), n=nn.BatchNorm1d(4)).eval(),
        (4,),
    ),
    "rms norm": (lambda: field(lambda s, t, y: s.a(s.n(y)), a=linear(), n=nn.RMSNorm(4)), (4,)),
    "message passing": (
        lambda: field(
            message_passing,
            {"source": torch.tensor([0, 1, 2, 3, 1]), "target": torch.tensor([1, 2, 3, 0, 3])},
            layer=linear(8),
        ),
        (8,),
    ),
    "gru cell": (
        lambda: field(lambda s, t, y: s.cell(torch.zeros_like(y), y) - y, cell=nn.GRUCell(6, 6)),
        (6,),
    ),
    "lstm cell": (lambda: field(lstm, cell=nn.LSTMCell(4, 4)), (8,)),
    "multi-head attention": (
        lambda: field(
            lambda s, t, y: s.m(y, y, y, need_weights=False)[0],
            m=nn.MultiheadAttention(8, 2, batch_first=True),
        ),
        (3, 8),
    ),
    "transformer": (
        lambda: field(
            lambda s, t, y: s.layer(y),
            layer=nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True),
        ),
        (3, 8),
    ),
    "time features": (
        lambda: field(
            time_features, {"w": torch.arange(1.0, 4.0)}, net=mlp(10, 12, 4, activation=nn.Mish)
        ),
        (4,),
    ),
    "film": (
        lambda: field(
            lambda s, t, y: s.b(
                F.gelu(s.a(y) * (1 + s.f(t.view(1, 1))), approximate="tanh") + s.f(t.view(1, 1))
            ),
            f=nn.Linear(1, 12),
            a=nn.Linear(4, 12),
            b=nn.Linear(12, 4),
        ),
        (4,),
    ),
    "second order": (
        lambda: field(
            lambda s, t, y: torch.cat([y.chunk(2, -1)[1], s.net(y)], -1),
            net=mlp(6, 12, 3, activation=nn.SELU),
        ),
        (6,),
    ),
    "siren": (
        lambda: field(lambda s, t, y: s.b(torch.sin(5 * s.a(y))), a=linear(), b=linear()),
        (4,),
    ),
    "rows of times": (
        lambda: field(lambda s, t, y: torch.tanh(s.a(y)) * torch.cos(t.reshape(-1, 1)), a=linear()),
        (4,),
    ),
    "lotka-volterra": (lambda: field(lotka_volterra, rates=nn.Linear(4, 1, bias=False)), (2,)),
    "spiral": (lambda: field(lambda s, t, y: s.a((0.5 * y) ** 3), a=linear(2)), (2,)),
    "mixture": (
        lambda: field(
            mixture, gate=nn.Linear(4, 3), experts=nn.ModuleList(linear() for _ in range(3))
        ),
        (4,),
    ),
    "mask": (
        lambda: field(
            lambda s, t, y: torch.where(s.m, s.a(y), torch.tanh(y)),
            {"m": torch.tensor([True, False, True, True])},
            a=linear(),
        ),
        (4,),
    ),
    "embedding": (
        lambda: field(
            lambda s, t, y: s.a(torch.cat([y, s.e(s.k).expand(len(y), 4)], 1)),
            {"k": torch.tensor([2])},
            e=nn.Embedding(5, 4),
            a=nn.Linear(8, 4),
        ),
        (4,),
    ),
    "cumulative sum": (
        lambda: field(lambda s, t, y: s.a(torch.cumsum(torch.tanh(y), -1)), a=linear()),
        (4,),
    ),
    "weight norm": (
        lambda: field(
            lambda s, t, y: torch.tanh(s.a(y)), a=nn.utils.parametrizations.weight_norm(linear())
        ),
        (4,),
    ),
    "spectral norm in eval": (
        lambda: field(
            lambda s, t, y: torch.tanh(s.a(y)), a=nn.utils.parametrizations.spectral_norm(linear())
        ).eval(),
        (4,),
    ),
    "glu": (
        lambda: field(
            lambda s, t, y: s.b(F.glu(s.a(y), -1)), a=nn.Linear(4, 16), b=nn.Linear(8, 4)
        ),
        (4,),
    ),
    "prelu": (lambda: field(lambda s, t, y: s.p(s.a(y)), a=linear(), p=nn.PReLU()), (4,)),
    "norms": (
        lambda: field(
            lambda s, t, y: (
                s.a(y) / (1 + y.norm(dim=-1, keepdim=True))
                + torch.exp(-y.square())
                + torch.log(y.square() + 1)
                + torch.erf(y)
            ),
            a=linear(),
        ),
        (4,),
    ),
    "cross product": (
        lambda: field(
            lambda s, t, y: torch.cat(
                [y[:, 3:], torch.linalg.cross(y[:, :3], s.w.weight.expand(len(y), 3))], 1
            ),
            w=nn.Linear(3, 1, bias=False),
        ),
        (6,),
    ),
    "diffusion on a ring": (
        lambda: field(
            lambda s, t, y: (
                (torch.roll(y, 1, -1) - 2 * y + torch.roll(y, -1, -1)).flip(-1) + s.a(y)
            ),
            a=linear(),
        ),
        (4,),
    ),
    "bilinear": (
        lambda: field(lambda s, t, y: torch.tanh(s.b(y, y)), b=nn.Bilinear(4, 4, 4)),
        (4,),
    ),
    "einsum": (
        lambda: field(
            lambda s, t, y: torch.einsum(
                "bi,ijk,bj->bk", torch.sin(y), s.b.weight, torch.cos(y * t)
            ),
            b=nn.Bilinear(4, 4, 4, bias=False),
        ),
        (4,),
    ),
    "powers": (
        lambda: field(
            lambda s, t, y: (
                torch.atan2(s.a(y), 1 + y * y) + torch.log1p(y * y) - y * y.abs().pow(1.5)
            ),
            a=linear(),
        ),
        (4,),
    ),
}

#: What must be refused, and words of the reason.
REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "batch norm in training": (
        lambda: field(lambda s, t, y: s.n(y), n=nn.BatchNorm1d(4)),
        (4,),
        "cannot be traced|depend on each other",
    ),
    "dropout": (
        lambda: field(lambda s, t, y: F.dropout(s.a(y), 0.5), a=linear()),
        (4,),
        "random numbers",
    ),
    "noise": (
        lambda: field(lambda s, t, y: s.a(y) + torch.randn_like(y), a=linear()),
        (4,),
        "random numbers",
    ),
    "branch on time": (
        lambda: field(lambda s, t, y: s.a(y) if t < 0.5 else -s.a(y), a=linear()),
        (4,),
        "value of a tensor",
    ),
    "number of the state": (
        lambda: field(lambda s, t, y: s.a(y) * float(y.abs().max()), a=linear()),
        (4,),
        "value of a tensor",
    ),
    "mean over the batch": (
        lambda: field(lambda s, t, y: s.a(y) - y.mean(0), a=linear()),
        (4,),
        "depend on each other",
    ),
    "state changed in place": (
        lambda: field(changed_in_place, layer=linear()),
        (4,),
        "in place",
    ),
    "counter": (lambda: field(counted, layer=linear()), (4,), "changes its"),
    "fourier transform": (
        lambda: field(lambda s, t, y: torch.fft.irfft(torch.fft.rfft(s.a(y)), n=4), a=linear()),
        (4,),
        "aten._fft|complex",
    ),
    "other shape": (
        lambda: field(lambda s, t, y: s.a(y)[:, :2], a=linear()),
        (4,),
        "it returns",
    ),
}
