"""The backward pass of reversible.py: steps are undone and differentiated, the last one first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastnode.adjoints.chain import Cotangents, Inputs
from fastnode.adjoints.reversible_steps import COUPLING, increment
from fastnode.adjoints.stages import Gradients, Place, seeded, slopes_of, transpose
from fastnode.ops.rk_stage import rk_stage

if TYPE_CHECKING:
    from fastnode.adjoints.reversible import ReversibleChain


@dataclass(eq=False)
class _Point:
    """The two states and their cotangents."""

    y: Tensor
    z: Tensor
    by_y: Tensor
    by_z: Tensor


class Undoing:
    """One pass over the steps of a chain; the arguments are those of BackwardPass."""

    def __init__(self, chain: ReversibleChain, inputs: Inputs, cotangents: Cotangents):
        self.chain, self.inputs, self.cotangents = chain, inputs, cotangents
        for x in inputs.args:
            x.requires_grad_()
        self.field = chain.field(inputs)
        self.sums = Gradients([*inputs.args, *inputs.params])
        self.by_edge = torch.zeros(len(chain.edges), dtype=torch.float64)

    def run(self, kept: Sequence[Tensor]) -> list[Tensor | None]:
        """The gradients of ``inputs.flat()``; ``kept`` are the two states at the end."""
        chain, ts = self.chain, self.inputs.ts
        y, z = (x.detach() for x in kept)
        at = _Point(y, z, torch.zeros_like(y), torch.zeros_like(y))
        del y, z
        undo = self._undo if ts is None else self._undo_with_times
        for n in reversed(range(len(chain.edges) - 1)):
            for slot in chain.outputs.get(n, ()):
                g = self.cotangents[slot]
                if g is not None:
                    at.by_y = at.by_y + g
            undo(n, at)
        by_time = None
        if ts is not None:
            ts = ts.detach().requires_grad_()
            with torch.enable_grad():
                edges = torch.stack(chain.times(ts))  # pyright: ignore[reportArgumentType]
            (by_time,) = torch.autograd.grad(edges, ts, self.by_edge)
        return [at.by_y + at.by_z, by_time, None, *self.sums.sums]

    def _undo(self, n: int, at: _Point) -> None:
        """From the end of step n to its beginning.

        Of the size of a state at once: the point (4), the slopes of the stages before the one that
        is differentiated and the products of those behind it (as many as the method has stages),
        that stage's state and its cotangent. With the two states at the end and the values and
        cotangents at two output times that is 18 for dopri5, 36 of the 50 MB that states of 2 MiB
        take at most; the others are the field's own.
        """
        chain, field, sums = self.chain, self.field, self.sums
        t, t1 = chain.edges[n : n + 2]
        there, back = chain.before(n)
        place = Place(n, t1, t, at.y)
        with torch.no_grad():
            at.z, k = increment(field, chain.scheme, place, at.z, back)
        terms = seeded(chain.scheme, place, [(None, at.by_z)], sign=-1.0)
        by_y, _ = transpose(field, chain.scheme, place, terms, [at.by_y], sums, back, k)
        assert by_y is not None
        at.by_y = by_y
        place = Place(n, t, t1, at.z)
        with torch.no_grad():
            stages, weights = chain.scheme.output(t, t1, None)
            k = slopes_of(field, chain.scheme, place, stages, there)
            rest = rk_stage(at.y - at.z, [k[i] for i in stages], [-w for w in weights])
            at.y = rest.div_(COUPLING).add_(at.z)
            del rest
        terms = seeded(chain.scheme, place, [(None, by_y)])
        at.by_z = torch.add(at.by_z, by_y, alpha=1 - COUPLING)
        by_z, _ = transpose(field, chain.scheme, place, terms, [at.by_z], sums, there, k)
        assert by_z is not None
        by_y.mul_(COUPLING)
        at.by_z = by_z

    def _undo_with_times(self, n: int, at: _Point) -> None:
        """The same by one call of autograd, for times that need gradients too."""
        chain, field, sums = self.chain, self.field, self.sums
        t, t1 = chain.edges[n : n + 2]
        there, back = chain.before(n)
        with torch.no_grad():
            at.z, _ = increment(field, chain.scheme, Place(n, t1, t, at.y), at.z, back)
            place = Place(n, t, t1, at.z)
            step, _ = increment(field, chain.scheme, place, torch.zeros_like(at.z), there)
            at.y = at.z + (at.y - at.z - step) / COUPLING
        ends = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (t, t1)]
        leaves = [x.detach().requires_grad_() for x in (at.y, at.z)]
        with torch.enable_grad():
            outputs = chain.take(field, n, *ends, *leaves)
        found = torch.autograd.grad(
            outputs, [*leaves, *ends, *sums.wanted], [at.by_y, at.by_z], allow_unused=True
        )
        by_y, by_z, *times = found[:4]
        assert by_y is not None and by_z is not None
        at.by_y, at.by_z = by_y, by_z
        for i, g in enumerate(times):
            if g is not None:
                self.by_edge[n + i] += g
        sums.add(found[4:])
