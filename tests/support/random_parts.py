"""Steps of random fields that are parts of networks."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from random_step import Step, parameter
from torch import Tensor, nn

# Larger parts.


def attention(rng: random.Random, sizes: Sequence[int]) -> Step | None:
    if len(sizes) != 2 or sizes[0] > 9:
        return None
    n, width = sizes
    kind = rng.choice(["sdpa", "causal", "heads", "layer", "masked"])
    if kind in ("heads", "layer"):
        heads = rng.choice([d for d in range(1, width + 1) if width % d == 0])
        if kind == "heads":
            m = nn.MultiheadAttention(width, heads, batch_first=True)
            return Step(lambda s, t, h, y: s.m(h, h, h, need_weights=False)[0], m=m)
        m = nn.TransformerEncoderLayer(
            width, heads, 6, dropout=0.0, batch_first=True, norm_first=rng.random() < 0.5
        )
        return Step(lambda s, t, h, y: s.m(h), m=m)
    q, k = nn.Linear(width, 4), nn.Linear(width, 4)
    mask = (torch.rand(n, n) < 0.7) | torch.eye(n, dtype=torch.bool)

    def call(s: Step, t: Tensor, h: Tensor, y: Tensor) -> Tensor:
        how = {"is_causal": True} if kind == "causal" else {}
        if kind == "masked":
            how = {"attn_mask": s.mask}
        q, k = s.q(h)[:, None], s.k(h)[:, None]
        return F.scaled_dot_product_attention(q, k, h[:, None], **how)[:, 0]

    return Step(call, q=q, k=k, mask=mask)


def time(rng: random.Random, sizes: Sequence[int]) -> Step | None:
    if not sizes:
        return None
    width = sizes[-1]
    kind = rng.choice(["features", "film", "hyper", "gate", "view", "shift"])
    if kind == "features":
        return Step(
            lambda s, t, h, y: h + s.a(torch.cat([torch.sin(s.w * t), torch.cos(s.w * t)])),
            w=torch.arange(1.0, 4.0), a=nn.Linear(6, width),
        )  # fmt: skip
    if kind == "film":
        return Step(
            lambda s, t, h, y: h * (1 + s.a(t.view(1, 1)).flatten()) + s.b(t.reshape(1)),
            a=nn.Linear(1, width), b=nn.Linear(1, width),
        )  # fmt: skip
    if kind == "hyper":
        out = rng.randint(1, 6)

        def hyper(s: Step, t: Tensor, h: Tensor, y: Tensor) -> Tensor:
            w = s.b(torch.tanh(s.a(t.reshape(1, 1)))).reshape(width, out)
            return torch.tanh(h @ w)

        return Step(hyper, a=nn.Linear(1, 5), b=nn.Linear(5, width * out))
    if kind == "gate":
        return Step(lambda s, t, h, y: h * torch.sigmoid(s.w * t), w=parameter(width))
    if kind == "shift":
        return Step(lambda s, t, h, y: torch.where(t < 0.5, h, -h) * torch.exp(-t))
    return Step(lambda s, t, h, y: torch.sin(h + t.reshape(-1, *[1] * len(sizes))))


def inner(rng: random.Random, sizes: Sequence[int]) -> Step | None:
    """Autograd inside of the field."""
    count = math.prod(sizes)
    if count > 24:
        return None
    kind = rng.choice(["gradient", "trace", "product"])
    act = rng.choice([torch.tanh, F.softplus, F.silu, torch.sin])
    a, b = nn.Linear(count, 6), nn.Linear(6, count)

    def call(s: Step, t: Tensor, h: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            x = h.reshape(len(h), -1)
            x = x if x.requires_grad else x.detach().requires_grad_()
            hidden = act(s.a(x))
            if kind == "gradient":
                (g,) = torch.autograd.grad((hidden * hidden).sum(), x, create_graph=True)
                return g.reshape(h.shape)
            f = s.b(hidden)
            if kind == "product":
                (g,) = torch.autograd.grad(f, x, s.e.expand_as(f), create_graph=True)
                return f.reshape(h.shape) + g.sum(1).reshape(-1, *[1] * len(sizes))
            total = 0.0
            for i in range(min(count, 3)):
                (g,) = torch.autograd.grad(f[:, i].sum(), x, create_graph=True)
                total = total + g[:, i]
            return f.reshape(h.shape) * total.reshape(-1, *[1] * len(sizes))  # pyright: ignore

    return Step(call, a=a, b=b, e=torch.randn(1, count))


def cell(rng: random.Random, sizes: Sequence[int]) -> Step | None:
    if len(sizes) != 1:
        return None
    n, width = sizes[0], rng.choice([3, 4, 8])
    kind = rng.choice(["gru", "lstm", "rnn"])
    if kind == "gru":
        c = nn.GRUCell(n, width)
        return Step(lambda s, t, h, y: s.c(h, h.sum(1, keepdim=True).sin().expand(-1, width)), c=c)
    if kind == "rnn":
        return Step(lambda s, t, h, y: s.c(h, h), c=nn.RNNCell(n, n))

    def lstm(s: Step, t: Tensor, h: Tensor, y: Tensor) -> Tensor:
        zero = h.new_zeros(len(h), width)
        return torch.cat(s.c(h, (zero, zero)), 1)

    return Step(lstm, c=nn.LSTMCell(n, width))


def residual(rng: random.Random, sizes: Sequence[int]) -> Step:
    """The state again, as far as it goes."""
    count = math.prod(sizes)
    kind = rng.choice(["add", "times"])

    def call(s: Step, t: Tensor, h: Tensor, y: Tensor) -> Tensor:
        part = y.flatten(1)[:, :count]
        part = F.pad(part, (0, count - part.shape[1])).reshape(h.shape)
        return h + part if kind == "add" else h * part

    return Step(call)
