"""Random vector fields: modules put together from the operations that docs/compiled.md lists.

A recipe is a list of (name of a step, seed): the seed draws the step's sizes, functions and
numbers. Steps that do not fit the tensor they meet are left out, so that every part of a recipe is
a recipe as well.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import random_moves as moves
import random_parts as parts
import random_sums as sums
import torch
from random_step import Step
from torch import Tensor, nn

Recipe = Sequence[tuple[str, int]]

#: Numbers that a sample may grow to.
MOST = 160


class RandomField(nn.Module):
    def __init__(self, shape: Sequence[int], recipe: Recipe):
        super().__init__()
        self.steps = nn.ModuleList()
        self.recipe = []
        y = h = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
        t = torch.tensor(0.3)
        for name, seed in recipe:
            torch.manual_seed(seed)
            step = STEPS[name](random.Random(seed), tuple(h.shape[1:]))
            if step is None:
                continue
            step.eval()
            found = step(t, h, y).detach()
            if not 0 < found[0].numel() <= MOST or not bool(found.isfinite().all()):
                continue
            self.steps.append(step)
            self.recipe.append((name, seed))
            h = found
            if float(h.abs().max()) > 20:
                self.steps.append(Step(lambda s, t, h, y: 3 * torch.tanh(h / 10)))
                h = self.steps[-1](t, h, y)
        torch.manual_seed(0)
        count, wanted = h[0].numel(), y[0].numel()
        self.last = nn.Identity() if count == wanted else nn.Linear(count, wanted)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        h = y
        for step in self.steps:
            h = step(t, h, y)
        return self.last(h.reshape(len(y), -1)).reshape(y.shape)


STEPS: dict[str, Callable[[random.Random, Sequence[int]], Step | None]] = {
    each.__name__: each
    for each in (
        sums.one, sums.both, sums.reduce, sums.softmax, sums.normal, sums.linear, sums.product,
        sums.convolution, sums.pooling, moves.cat, moves.view, moves.write, moves.indexed,
        moves.cumulated, parts.attention, parts.time, parts.inner, parts.cell, parts.residual,
    )
}  # fmt: skip

SHAPES = [
    (1,), (3,), (4,), (7,), (16,), (2, 3), (4, 8), (5, 1), (1, 6), (2, 4, 4), (3, 5, 2),
    (2, 2, 1, 3),
]  # fmt: skip
