"""Backward passes that autograd calls once for a batch of cotangents.

``torch.autograd.grad(is_grads_batched=True)`` and ``torch.autograd.functional.jacobian(
vectorize=True)`` run the backward pass under vmap, which cannot look into a second solve: its steps
depend on values. So the batch is taken apart here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor

Gradients = Sequence[Tensor | None]


def for_each_cotangent(
    backward: Callable[[Gradients], Gradients], cotangents: Gradients
) -> Gradients:
    """``backward(cotangents)``, or the stack of its results for each of a batch of cotangents."""
    if not any(g is not None and is_legacy_batchedtensor(g) for g in cotangents):
        return backward(cotangents)
    with _outside_vmap() as level:
        unbatched, batched = torch._remove_batch_dim, torch._add_batch_dim  # pyright: ignore
        count, columns = 0, []
        for g in cotangents:
            if g is not None and is_legacy_batchedtensor(g):
                # The size of the batch is read for a tensor without one only.
                g = unbatched(g, level, 0, 0)
                count = len(g)
                # Of an empty batch the gradients' shapes are wanted.
                g = g.unbind() if count else (torch.zeros_like(g[:1].sum(0)),)
            columns.append(g)
        rows = [
            backward([g[i] if isinstance(g, tuple) else g for g in columns])
            for i in range(max(count, 1))
        ]
        found = [_stack(column) for column in zip(*rows, strict=True)]
        return [None if g is None else batched(g[:count], 0, level) for g in found]


def _stack(column: Gradients) -> Tensor | None:
    like = next((g for g in column if g is not None), None)
    if like is None:
        return None
    return torch.stack([torch.zeros_like(like) if g is None else g for g in column])


@contextmanager
def _outside_vmap() -> Iterator[int]:
    """As if no vmap were active, which forbids random numbers; gives the level of the vmap."""
    level = torch._C._vmapmode_decrement_nesting() + 1
    try:
        yield level
    finally:
        torch._C._vmapmode_increment_nesting()
