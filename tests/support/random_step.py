"""A step of a random field: a function of (the step, t, h, y) and what it holds."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

#: (t, h, y) -> the next h, all with the batch first.
Call = Callable[["Step", Tensor, Tensor, Tensor], Tensor]


class Step(nn.Module):
    def __init__(self, call: Call, **parts: nn.Module | Tensor):
        super().__init__()
        self.call = call
        for name, part in parts.items():
            if isinstance(part, nn.Module) or isinstance(part, nn.Parameter):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, t: Tensor, h: Tensor, y: Tensor) -> Tensor:
        return self.call(self, t, h, y)


def parameter(*sizes: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(sizes) / math.sqrt(max(sizes[-1] if sizes else 1, 1)))


def two_factors(count: int, rng: random.Random) -> tuple[int, int]:
    first = rng.choice([d for d in range(1, count + 1) if count % d == 0])
    return first, count // first
