"""What the fields of field_zoo.py are made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


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


def pooled(self, t, y):
    return self.b(F.interpolate(F.max_pool2d(self.a(y), 2), scale_factor=2))


def in_order(self, t, y):
    h = self.a(y)
    largest = h.max(-1, keepdim=True).values
    return torch.sort(h, dim=-1, descending=True).values * torch.cos(largest) - y


def best_experts(self, t, y):
    """A mixture of which each sample asks the two experts that its gate prefers."""
    scores, chosen = self.gate(y).topk(2, -1)
    weights = torch.zeros_like(self.gate(y)).scatter(-1, chosen, torch.softmax(scores, -1))
    return torch.stack([torch.tanh(layer(y)) for layer in self.experts], -1) @ weights[..., None]


def time_u_net(self, t, y):
    """Down, up, and what was there before beside it."""
    a = F.silu(self.a(torch.cat([y, t.expand(len(y), 1, *y.shape[2:])], 1)))
    b = F.silu(self.b(a))
    return self.d(torch.cat([F.silu(self.c(b)), a], 1))
