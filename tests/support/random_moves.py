"""Steps of random fields that move elements: views, copies, indices."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from random_step import Step, parameter, two_factors
from torch import Tensor, nn

# Elements that move.


def cat(rng: random.Random, sizes: Sequence[int]) -> Step | None:
    if not sizes:
        return None
    dim = rng.randint(1, len(sizes))
    kind = rng.choice(["twice", "time", "ones", "parameter", "stack", "part", "sines"])
    if kind == "twice":
        return Step(lambda s, t, h, y: torch.cat([torch.tanh(h), h], dim))
    if kind == "time":
        return Step(lambda s, t, h, y: torch.cat([h, t + 0 * h.narrow(dim, 0, 1)], dim))
    if kind == "ones":
        return Step(lambda s, t, h, y: torch.cat([h.new_zeros(h.shape), h], dim - len(sizes) - 1))
    if kind == "stack":
        return Step(lambda s, t, h, y: torch.stack([h, h * h, 1 + 0 * h], dim))
    if kind == "part":
        return Step(lambda s, t, h, y: torch.cat([h, h.narrow(dim, 0, 1), h.flip(dim)], dim))
    if kind == "sines":
        return Step(
            lambda s, t, h, y: torch.cat([h.flatten(1), torch.sin(s.w * t).expand(len(h), 3)], 1),
            w=parameter(3),
        )
    lead = list(sizes)
    lead[dim - 1] = 2
    w = parameter(1, *lead)
    return Step(lambda s, t, h, y: torch.cat([s.w.expand(len(h), *lead), h], dim), w=w)


def view(rng: random.Random, sizes: Sequence[int]) -> Step | None:
    if not sizes:
        return Step(lambda s, t, h, y: h.unsqueeze(-1))
    dim = rng.randint(1, len(sizes))
    n = sizes[dim - 1]
    order = [0, *rng.sample(range(1, len(sizes) + 1), len(sizes))]
    a, b = two_factors(math.prod(sizes), rng)
    start = rng.randrange(n)
    size = rng.randint(1, n - start)
    step = rng.randint(1, 3)
    made: dict[str, Callable[[Tensor], Tensor]] = {
        "permute": lambda h: h.permute(order),
        "reshape": lambda h: h.reshape(-1, a, b),
        "reshape back": lambda h: h.transpose(1, -1).reshape(-1, b, a),
        "narrow": lambda h: h.narrow(dim, start, size),
        "slice": lambda h: h[(slice(None),) * dim + (slice(start, None, step),)],
        "select": lambda h: h.select(dim, start - n if step == 1 else start),
        "flip": lambda h: h.flip(dim),
        "flips": lambda h: h.flip(list(range(1, h.dim()))),
        "roll": lambda h: h.roll(step, dim),
        "rolls": lambda h: h.roll(-step, -1) - 2 * h,
        "repeat": lambda h: h.repeat([1] * dim + [2] + [1] * (len(sizes) - dim)),
        "interleave": lambda h: h.repeat_interleave(2, dim),
        "expand": lambda h: h.unsqueeze(dim).expand([*h.shape[:dim], 3, *h.shape[dim:]]),
        "unsqueeze": lambda h: h.unsqueeze(dim).sin(),
        "squeeze": lambda h: h.squeeze(dim),
        "flatten": lambda h: h.flatten(1).cos(),
        "chunk": lambda h: torch.mul(*h.chunk(2, dim)) if n % 2 == 0 else h,
        "split": lambda h: torch.cat(h.split(max(1, n // 2), dim)[::-1], dim),
        "unbind": lambda h: sum(x * (i + 1) for i, x in enumerate(h.unbind(dim))),  # pyright: ignore
        "unfold": lambda h: h.unfold(dim, size, step) * 1.5,
        "pad": lambda h: F.pad(h, (1, 2)), "pad less": lambda h: F.pad(h, (1, -1), value=0.3),
        "tril": lambda h: h.tril() if h.dim() > 2 else h,
        "diagonal": lambda h: h.diagonal(dim1=-2, dim2=-1) if h.dim() > 2 else h,
        "triu": lambda h: h.triu(1) + h if h.dim() > 2 else h,
        "glu": lambda h: F.glu(h, dim) if n % 2 == 0 else h,
        "swap": lambda h: torch.cat(h.split([start, n - start], dim)[::-1], dim),
        "outer": lambda h: h.flatten(1)[:, :, None] * h.flatten(1)[:, None, :5],
        "as strided": lambda h: h.movedim(dim, 1).contiguous().sin(),
        "diff": lambda h: h.diff(dim=dim) if n > 1 else h,
        "meshed": lambda h: h.unsqueeze(-1) - h.flatten(1).narrow(1, 0, 2).reshape(
            -1, *[1] * len(sizes), 2),
    }  # fmt: skip
    function = made[rng.choice(list(made))]
    return Step(lambda s, t, h, y: function(h))


def write(rng: random.Random, sizes: Sequence[int]) -> Step | None:
    """Assignments to parts of copies."""
    if not sizes:
        return None
    dim = rng.randint(1, len(sizes))
    n = sizes[dim - 1]
    start = rng.randrange(n)
    part = (slice(None),) * dim
    kind = rng.choice(["slice", "element", "zeros", "step", "add", "mask"])
    mask = torch.rand(sizes) < 0.5

    def call(s: Step, t: Tensor, h: Tensor, y: Tensor) -> Tensor:
        out = h.new_zeros(h.shape) if kind == "zeros" else h.clone()
        if kind == "mask":
            return torch.where(s.mask, h, t * h)
        where = (
            start if kind == "element"
            else slice(start, None, 2) if kind == "step" else slice(start, n)
        )  # fmt: skip
        if kind == "add":
            out[(*part, where)] += torch.sin(h[(*part, where)])
        else:
            out[(*part, where)] = torch.cos(h[(*part, where)])
        return out * 1.5 + h

    return Step(call, mask=mask)


def indexed(rng: random.Random, sizes: Sequence[int]) -> Step | None:
    if not sizes:
        return None
    dim = rng.randint(1, len(sizes))
    n, count = sizes[dim - 1], rng.randint(1, 5)
    generator = torch.Generator().manual_seed(rng.randrange(1000))
    index = torch.randint(n, (count,), generator=generator)
    kind = rng.choice(
        ["select", "index", "gather", "add", "scatter", "put", "embedding", "pairs", "take", "copy"]
    )
    if kind == "select":
        return Step(lambda s, t, h, y: h.index_select(dim, s.i), i=index)
    if kind == "index":
        return Step(lambda s, t, h, y: h[(slice(None),) * dim + (s.i,)], i=index)
    if kind == "take":
        return Step(lambda s, t, h, y: h[(slice(None),) * dim + ([0, -1],)])
    if kind == "gather" or kind == "scatter":
        shape = list(sizes)
        shape[dim - 1] = count
        wide = torch.randint(n, shape, generator=generator)
        if kind == "gather":
            return Step(lambda s, t, h, y: h.gather(dim, s.i.expand(len(h), *shape)), i=wide[None])
        other = min(count, n)

        def add(s: Step, t: Tensor, h: Tensor, y: Tensor) -> Tensor:
            places = s.i.narrow(dim, 0, other).expand(len(h), *s.i.narrow(dim, 0, other).shape[1:])
            return h.scatter_add(dim, places, torch.sin(h.narrow(dim, 0, other)))

        return Step(add, i=wide[None])
    if kind == "add":
        target = torch.randint(3, (n,), generator=generator)

        def gathered(s: Step, t: Tensor, h: Tensor, y: Tensor) -> Tensor:
            shape = list(h.shape)
            shape[dim] = 3
            return h.new_zeros(shape).index_add(dim, s.i, torch.tanh(h))

        return Step(gathered, i=target)
    if kind == "copy":
        order = torch.randperm(n, generator=generator)
        return Step(lambda s, t, h, y: torch.zeros_like(h).index_copy(dim, s.i, h.sin()), i=order)
    if kind == "put" and len(sizes) == 1:
        return Step(
            lambda s, t, h, y: h.index_put(
                (torch.arange(len(h))[:, None], s.i), h[:, s.i] * 2, accumulate=True
            ),
            i=index,
        )
    if kind == "embedding":
        return Step(
            lambda s, t, h, y: h.flatten(1).sum(1, keepdim=True) * s.e(s.i).flatten()[None].sin(),
            i=index % 4, e=nn.Embedding(4, 3),
        )  # fmt: skip
    if kind == "pairs" and len(sizes) >= 2:
        other = torch.randint(sizes[1], (count,), generator=generator)
        first = torch.randint(sizes[0], (count,), generator=generator)
        return Step(lambda s, t, h, y: h[:, s.i, s.j].tanh(), i=first, j=other)
    return None


def cumulated(rng: random.Random, sizes: Sequence[int]) -> Step | None:
    if not sizes:
        return None
    dim = rng.randint(1, len(sizes))
    kind = rng.choice(["sum", "back", "product"])
    if kind == "product":
        return None
    if kind == "back":
        return Step(lambda s, t, h, y: h.flip(dim).cumsum(dim).flip(dim) * 0.3)
    return Step(lambda s, t, h, y: torch.cumsum(torch.tanh(h), dim))
