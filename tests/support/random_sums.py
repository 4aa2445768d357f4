"""Steps of random fields: element by element, reductions, products, convolutions."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from random_step import Step, parameter, two_factors
from torch import nn

# Element by element. Not hardsigmoid, whose gradient torch rounds to float32 in float64 as well.

ONE = {
    "tanh": torch.tanh, "sigmoid": torch.sigmoid, "silu": F.silu, "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"), "softplus": F.softplus, "elu": F.elu,
    "selu": F.selu, "celu": F.celu, "mish": F.mish, "relu": F.relu, "leaky": F.leaky_relu,
    "relu6": F.relu6, "hardtanh": F.hardtanh, "hardswish": F.hardswish, "softsign": F.softsign,
    "logsigmoid": F.logsigmoid, "tanhshrink": F.tanhshrink,
    "softshrink": F.softshrink,
    "hardshrink": F.hardshrink, "fmod": lambda x: torch.fmod(x, 0.3), "floor": torch.floor,
    "remainder": lambda x: torch.remainder(x, 0.3), "round": lambda x: x + torch.round(x),
    "fmax": lambda x: torch.fmax(x, -x), "copysign": lambda x: torch.copysign(x, x.sin()),
    "ldexp": lambda x: torch.ldexp(x, torch.tensor(2)), "frac": torch.frac,
    "huber": lambda x: F.huber_loss(x, 0.3 * torch.sin(x), reduction="none"),
    "ndtr": torch.special.ndtr, "entr": lambda x: torch.special.entr(x.abs() + 0.1),
    "clamp both": lambda x: torch.clamp(x, x.sin(), x.cos() + 2),
    "tie": lambda x: torch.maximum(x, x * 1),
    "sin": torch.sin, "cos": torch.cos, "atan": torch.atan,
    "asinh": torch.asinh, "exp": lambda x: torch.exp(-x * x), "square": torch.square,
    "cube": lambda x: 0.1 * x**3, "sqrt": lambda x: torch.sqrt(1 + x * x), "erf": torch.erf,
    "erfc": torch.erfc, "abs": torch.abs, "log": lambda x: torch.log(0.5 + x * x),
    "log1p": lambda x: torch.log1p(x * x), "expm1": lambda x: torch.expm1(-x.abs()),
    "rsqrt": lambda x: torch.rsqrt(0.5 + x * x), "reciprocal": lambda x: 1 / (2 + x * x),
    "pow": lambda x: (1 + x.abs()) ** 1.5, "pow neg": lambda x: (1 + x.abs()) ** -2,
    "2 to the": lambda x: 2 ** torch.tanh(x), "sinh": lambda x: torch.sinh(torch.tanh(x)),
    "cosh": lambda x: torch.cosh(torch.tanh(x)), "tan": lambda x: torch.tan(0.5 * torch.tanh(x)),
    "clamp": lambda x: x.clamp(-0.7, 0.9), "clamp min": lambda x: x.clamp(min=-0.3),
    "clamp max": lambda x: x.clamp_max(0.3), "neg": lambda x: -x, "sub": lambda x: 1 - x,
    "where": lambda x: torch.where(x > 0.1, x * x, torch.sin(x)),
    "where le": lambda x: torch.where((x <= 0.2) & (x > -1), x, -0.5 * x),
    "masked": lambda x: x.masked_fill(x < -0.4, 0.25), "exp2": lambda x: torch.exp2(torch.tanh(x)),
    "sinc": lambda x: torch.sinc(0.3 + x.abs()), "xlogy": lambda x: torch.xlogy(x, 1 + x * x),
    "threshold": lambda x: F.threshold(x, 0.1, -0.2), "sigmoid'": lambda x: x * torch.sigmoid(x),
    "logit": lambda x: torch.logit(0.8 * torch.sigmoid(x) + 0.1), "lerp": lambda x: x.lerp(-x, 0.3),
    "log sum": lambda x: torch.logaddexp(x, 0.5 * x),
    "in place": lambda x: (x * 2).add_(1).mul_(x),
    "asin": lambda x: torch.asin(0.8 * torch.tanh(x)), "acos": lambda x: torch.acos(0.5 * x.sin()),
    "atanh": lambda x: torch.atanh(0.7 * torch.tanh(x)), "nan to num": torch.nan_to_num,
    "acosh": lambda x: torch.acosh(1.5 + x * x), "log2": lambda x: torch.log2(1 + x * x),
    "full": lambda x: x + torch.full_like(x, 0.1) * 0.3, "deg": torch.deg2rad,
    "hypot": lambda x: torch.hypot(x, 1 + 0 * x),
}  # fmt: skip


def one(rng: random.Random, sizes: Sequence[int]) -> Step:
    function = ONE[rng.choice(list(ONE))]
    return Step(lambda s, t, h, y: function(h))


def _broadcast(rng: random.Random, sizes: Sequence[int]) -> list[int]:
    return [n if rng.random() < 0.6 else 1 for n in sizes[rng.randint(0, len(sizes)) :]]


BOTH = [
    torch.add, torch.sub, torch.mul, lambda a, b: a / (2 + b * b), torch.maximum, torch.minimum,
    lambda a, b: b - a, lambda a, b: torch.where(a > b, a, b * 0.5),
    lambda a, b: a * 0.3 + b * torch.tanh(b) * 3,
    lambda a, b: torch.atan2(a, 1.5 + b * b), lambda a, b: torch.addcmul(a, b, a, value=0.5),
    lambda a, b: torch.addcdiv(a, b, 2 + a * a), lambda a, b: (1 + a * a) ** torch.tanh(b),
    lambda a, b: torch.add(a, b, alpha=-0.5), lambda a, b: b / (1 + a.abs()),
]  # fmt: skip


def both(rng: random.Random, sizes: Sequence[int]) -> Step:
    """With a parameter, a buffer, the time, a function of both or another function of h."""
    function = rng.choice(BOTH)
    kind = rng.choice(["parameter", "buffer", "time", "scaled", "self", "number"])
    if kind == "self":
        other = ONE[rng.choice(list(ONE))]
        return Step(lambda s, t, h, y: function(other(h), h))
    if kind == "time":
        return Step(lambda s, t, h, y: function(h, t.expand_as(h)))
    if kind == "number":
        return Step(lambda s, t, h, y: function(h, torch.full_like(h, 0.7)))
    part = parameter(*_broadcast(rng, sizes))
    if kind == "buffer":
        return Step(lambda s, t, h, y: function(h, s.part), part=part.detach())
    if kind == "scaled":
        return Step(lambda s, t, h, y: function(h, torch.sin(s.part * t)), part=part)
    return Step(lambda s, t, h, y: function(h, s.part), part=part)


# Reductions.

REDUCE = {
    "sum": lambda x, d, k: x.sum(d, keepdim=k), "mean": lambda x, d, k: x.mean(d, keepdim=k),
    "amax": lambda x, d, k: x.amax(d, keepdim=k), "amin": lambda x, d, k: x.amin(d, keepdim=k),
    "logsumexp": lambda x, d, k: x.logsumexp(d, keepdim=k),
    "norm": lambda x, d, k: (x * x + 0.1).sum(d, keepdim=k).sqrt(),
    "vector norm": lambda x, d, k: torch.linalg.vector_norm(x + 0.1, dim=d, keepdim=k),
    "one norm": lambda x, d, k: torch.linalg.vector_norm(x, ord=1, dim=d, keepdim=k),
    "any": lambda x, d, k: (x > 1).any(d[0], keepdim=k).to(x.dtype),
    "prod": lambda x, d, k: (1 + 0.3 * torch.tanh(x)).prod(d[0], keepdim=k),
}  # fmt: skip


def reduce(rng: random.Random, sizes: Sequence[int]) -> Step | None:
    if not sizes:
        return None
    dims = rng.sample(range(1, len(sizes) + 1), rng.randint(1, len(sizes)))
    dims = [d - len(sizes) - 1 if rng.random() < 0.5 else d for d in dims]
    names = list(REDUCE)
    if math.prod(sizes[d - 1] if d > 0 else sizes[d] for d in dims) > 1:
        names += ["var", "std"]
    name = rng.choice(names)
    made = REDUCE.get(name)
    if name == "var":
        unbiased = rng.random() < 0.5
        made = lambda x, d, k: x.var(d, unbiased=unbiased, keepdim=k)  # noqa: E731
    if name == "std":
        made = lambda x, d, k: (x + 0.1 * x * x).std(d, keepdim=k) + 0.1  # noqa: E731
    assert made is not None
    if rng.random() < 0.5:
        join = rng.choice(BOTH)
        return Step(lambda s, t, h, y: join(h, made(h, dims, True)))
    return Step(lambda s, t, h, y: made(h, dims, False))


def softmax(rng: random.Random, sizes: Sequence[int]) -> Step | None:
    if not sizes:
        return None
    dim = rng.randint(1, len(sizes))
    function = rng.choice([F.softmax, F.log_softmax, F.softmin])
    return Step(lambda s, t, h, y: function(h, dim))


def normal(rng: random.Random, sizes: Sequence[int]) -> Step | None:
    kind = rng.choice(["layer", "group", "instance", "rms", "batch", "layers", "normalize"])
    if not sizes:
        return None
    if kind == "normalize":
        return Step(lambda s, t, h, y: F.normalize(h + 0.1, dim=-1))
    if kind in ("group", "instance", "batch"):
        channels = sizes[0]
        if kind == "group" and len(sizes) >= 1 and math.prod(sizes) > channels:
            groups = rng.choice([g for g in range(1, channels + 1) if channels % g == 0])
            return Step(lambda s, t, h, y: s.n(h), n=nn.GroupNorm(groups, channels))
        if kind == "instance" and len(sizes) == 2 and sizes[1] > 1:
            return Step(lambda s, t, h, y: s.n(h), n=nn.InstanceNorm1d(channels, affine=True))
        made = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm2d}.get(len(sizes))
        if made is None:
            return None
        norm = made(channels)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        return Step(lambda s, t, h, y: s.n(h), n=norm)
    last = list(sizes[rng.randrange(len(sizes)) :]) if kind == "layers" else [sizes[-1]]
    made = nn.RMSNorm if kind == "rms" else nn.LayerNorm
    return Step(lambda s, t, h, y: s.n(h + 0.1 * h * h), n=made(last))


# Products.


def linear(rng: random.Random, sizes: Sequence[int]) -> Step | None:
    if not sizes:
        return None
    width = rng.choice([1, 2, 3, 4, 7, 8, 16, 17, 24])
    kind = rng.choice(["linear", "no bias", "twice", "weight norm", "bilinear", "in time"])
    if kind == "bilinear":
        both = nn.Bilinear(sizes[-1], sizes[-1], width)
        return Step(lambda s, t, h, y: s.a(h, torch.tanh(h)), a=both)
    a = nn.Linear(sizes[-1], width, bias=kind != "no bias")
    if kind == "weight norm":
        a = nn.utils.parametrizations.weight_norm(a)
    if kind == "twice":
        return Step(lambda s, t, h, y: s.b(torch.tanh(s.a(h))), a=a, b=nn.Linear(width, sizes[-1]))
    if kind == "in time":
        return Step(lambda s, t, h, y: F.linear(h, s.a.weight * t, torch.sin(t * s.a.bias)), a=a)
    return Step(lambda s, t, h, y: s.a(h), a=a)


def product(rng: random.Random, sizes: Sequence[int]) -> Step | None:
    if len(sizes) < 2:
        return None
    m, k = sizes[-2:]
    kinds = ["left", "right", "square", "gram", "both", "time", "einsum", "lead", "outer"]
    kind = rng.choice(kinds)
    if kind == "left":
        return Step(lambda s, t, h, y: s.w @ h, w=parameter(rng.randint(1, 9), m))
    if kind == "right":
        return Step(lambda s, t, h, y: h @ s.w, w=parameter(k, rng.randint(1, 9)))
    if kind == "time":
        return Step(lambda s, t, h, y: torch.cos(t * s.w) @ h, w=parameter(m, m))
    if kind == "gram":
        return Step(lambda s, t, h, y: h @ h.transpose(-1, -2) / k)
    if kind == "square":
        return Step(lambda s, t, h, y: (h @ h.transpose(-1, -2) @ h) / (m * k))
    if kind == "both":
        w = parameter(m, m)
        return Step(lambda s, t, h, y: torch.tanh(s.w @ h).transpose(-1, -2) @ h / m, w=w)
    if kind == "lead":
        lead = sizes[:-2]
        return Step(lambda s, t, h, y: h @ s.w, w=parameter(*lead, k, rng.randint(1, 5)))
    if kind == "outer" and len(sizes) == 2:
        return Step(lambda s, t, h, y: torch.einsum("bij,bik->bjk", h, torch.sin(h)) / m)
    if kind == "einsum" and len(sizes) == 2:
        return Step(
            lambda s, t, h, y: torch.einsum("bij,jkl,bil->bik", h, s.w, torch.tanh(h)),
            w=parameter(k, 3, k),
        )
    return Step(lambda s, t, h, y: F.linear(h, s.w), w=parameter(rng.randint(1, 9), k))


def convolution(rng: random.Random, sizes: Sequence[int]) -> Step | None:
    rank = rng.choice([1, 2])
    numel = math.prod(sizes)
    if len(sizes) == rank + 1:
        shape = list(sizes)
    else:
        c, rest = two_factors(numel, rng)
        shape = [c, rest] if rank == 1 else [c, *two_factors(rest, rng)]
    groups = rng.choice([g for g in range(1, shape[0] + 1) if shape[0] % g == 0])
    out = groups * rng.randint(1, 3)
    kernel = [rng.randint(1, min(3, n)) for n in shape[1:]]
    stride = [rng.randint(1, 2) for _ in kernel]
    pairs = zip(shape[1:], kernel, strict=True)
    dilation = [rng.randint(1, 2) if n > 2 * k else 1 for n, k in pairs]
    if rng.random() < 0.3:
        made = nn.ConvTranspose1d if rank == 1 else nn.ConvTranspose2d
        padding = [rng.randint(0, (k - 1) * d) for k, d in zip(kernel, dilation, strict=True)]
        extra = [rng.randint(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True)]
        layer = made(
            shape[0], out, kernel, stride, padding, extra, groups, rng.random() < 0.5, dilation
        )  # fmt: skip
        try:
            layer(torch.zeros(1, *shape))
        except RuntimeError:
            return None
    else:
        made = nn.Conv1d if rank == 1 else nn.Conv2d
        mode = rng.choice(["zeros", "zeros", "zeros", "circular", "reflect", "replicate"])
        padding = [rng.randint(0, min(2, n - 1)) for n in shape[1:]]
        layer = made(
            shape[0], out, kernel, stride, padding, dilation, groups, rng.random() < 0.7, mode
        )  # fmt: skip
        try:
            layer(torch.zeros(1, *shape))
        except RuntimeError:
            return None
    kind = rng.choice(["plain", "plain", "time"])
    if kind == "time":
        return Step(
            lambda s, t, h, y: torch.cos(t) * s.a(h.reshape(-1, *shape) * torch.sin(t + 1)), a=layer
        )
    return Step(lambda s, t, h, y: s.a(h.reshape(-1, *shape)), a=layer)


def pooling(rng: random.Random, sizes: Sequence[int]) -> Step | None:
    if len(sizes) != 3 and len(sizes) != 2:
        return None
    if len(sizes) == 2:
        if sizes[1] < 2:
            return None
        kind = rng.choice(["average", "largest", "nearest"])
        if kind == "nearest":
            return Step(lambda s, t, h, y: F.interpolate(h, scale_factor=2))
        function = F.avg_pool1d if kind == "average" else F.max_pool1d
        padding = rng.choice([0, 0, 1]) if kind == "largest" else 0
        stride = rng.randint(1, 3)
        return Step(lambda s, t, h, y: function(h, 2, stride, padding))
    kind = rng.choice(["average", "nearest", "largest", "adaptive", "shuffle"])
    if kind == "nearest":
        return Step(lambda s, t, h, y: F.interpolate(h, scale_factor=2))
    if kind == "adaptive":
        return Step(lambda s, t, h, y: F.adaptive_avg_pool2d(h, 1) * h)
    if kind == "shuffle":
        if sizes[0] % 4:
            return None
        return Step(lambda s, t, h, y: F.pixel_shuffle(h, 2))
    if min(sizes[1:]) < 2:
        return None
    stride, kernel = rng.randint(1, 2), rng.choice([2, (1, 2), (2, 1)])
    if kind == "average":
        return Step(lambda s, t, h, y: F.avg_pool2d(h, kernel, stride))
    ceil, dilation = rng.random() < 0.3, rng.choice([1, 1, min(2, min(sizes[1:]) - 1)])
    return Step(lambda s, t, h, y: F.max_pool2d(h, kernel, stride, 0, dilation, ceil))
