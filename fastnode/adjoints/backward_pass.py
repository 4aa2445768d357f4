"""The backward pass of checkpoint.py: from the cotangents of a solve's outputs to gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastnode.adjoints.chain import Cotangents, Inputs, State
from fastnode.adjoints.recompute import LARGE
from fastnode.adjoints.revolve import reverse
from fastnode.adjoints.stages import Gradients, Place, seeded, slopes_of, transpose
from fastnode.extension import empty_cache

if TYPE_CHECKING:
    from fastnode.adjoints.checkpoint import StepChain

#: Elements of a state below which a step is differentiated by one call of autograd and not by one
#: for each stage: faster by the overhead of the calls, at the cost of memory that is small.
SMALL = 16384


class BackwardPass:
    """One pass over the steps of a chain, the last one first.

    Args:
        chain: the steps.
        inputs: what they depend on, without a graph.
        cotangents: of all outputs.
    """

    def __init__(self, chain: StepChain, inputs: Inputs, cotangents: Cotangents):
        self.chain, self.inputs, self.cotangents = chain, inputs, cotangents
        self.scheme = chain.scheme
        for x in inputs.args:
            x.requires_grad_()
        self.field = chain.field(inputs)
        self.by_time = [
            None if x is None else torch.zeros_like(x) for x in (inputs.ts, inputs.grid)
        ]
        self.sums = Gradients([*inputs.args, *inputs.params])
        #: Cotangents of what the last step that was done begins with.
        self.upstream: list[Tensor | None] = [None] * (2 if self.scheme.carries else 1)

    def run(self, kept: Sequence[Tensor]) -> list[Tensor | None]:
        """The gradients of ``inputs.flat()``; ``kept`` are the states of the chain's kept steps."""
        chain, width = self.chain, len(self.upstream)
        first = chain.graph.steps
        states: dict[int, State] = {}
        if not first:
            with torch.no_grad():
                states[0] = chain.initial(self.field, self.inputs)
        for i, n in enumerate(chain.steps_kept):
            states[n] = tuple(x.detach() for x in kept[i * width : (i + 1) * width])
        # What the forward pass had free is no longer of use. To do so at each step would cost a
        # tenth of the time (512 features, 1024 samples), in page faults.
        self._tidy(self.inputs.y0)
        reverse(states, len(chain.edges) - 1, chain.slots, self._advance, self._pull)
        if first:
            y0 = self._through_graph(first)
        else:
            y0 = self._through_first_slope()
        return [y0, *self.by_time, *self.sums.sums]

    def _tidy(self, y: Tensor) -> None:
        if y.is_cpu and y.nbytes >= LARGE:
            empty_cache()

    def _advance(self, m: int, n: int, state: State) -> State:
        edges = self.chain.edges
        with torch.no_grad():
            for i in range(m, n):
                state = tuple(self.chain.take(self.field, i, state, edges[i], edges[i + 1], []))
        return state

    def _pull(self, n: int, state: State) -> None:
        chain = self.chain
        if chain.frugal:
            self._tidy(state[0])
        seeds = [
            (slot, t, g.contiguous())
            for slot, t in chain.outputs.get(n, ())
            if (g := self.cotangents[slot]) is not None
        ]
        slope = self.cotangents[chain.carried[n]] if n in chain.carried else None
        if slope is not None:
            after = self.upstream[1]
            self.upstream = [self.upstream[0], slope if after is None else after + slope]
        if not seeds and all(g is None for g in self.upstream):
            return
        timed = self.inputs.ts is not None or self.inputs.grid is not None
        if not timed and (chain.frugal or state[0].numel() >= SMALL):
            self._by_stages(n, state, seeds)
        else:
            self._by_step(n, state, seeds)

    def _by_stages(self, n: int, state: State, seeds: list[tuple[int, float, Tensor]]) -> None:
        """Each stage differentiated on its own."""
        t, t1 = self.chain.edges[n : n + 2]
        scheme, upstream = self.scheme, self.upstream
        merged: dict[float, Tensor] = {} if upstream[0] is None else {t1: upstream[0]}
        for _, target, g in seeds:
            merged[target] = merged[target] + g if target in merged else g
        carried = upstream[1] if scheme.carries else None
        place, before = Place(n, t, t1, *state), self.chain.random.before(n)
        terms = seeded(scheme, place, list(merged.items()), carried)
        k = None
        if self.chain.frugal:
            with torch.no_grad():
                earlier = scheme.needed(list(terms))[:-1]
                k = slopes_of(self.field, scheme, place, earlier, before)
        direct = list(merged.values())
        found = transpose(self.field, scheme, place, terms, direct, self.sums, before, k)
        self.upstream = list(found[: len(upstream)])

    def _by_step(self, n: int, state: State, seeds: list[tuple[int, float, Tensor]]) -> None:
        """The same by one call of autograd, for times that need gradients too."""
        chain, inputs, upstream = self.chain, self.inputs, self.upstream
        leaves = [x.detach().requires_grad_() for x in state]
        ends: list[Any] = chain.edges[n : n + 2]
        targets: list[Any] = [t for _, t, _ in seeds]
        timed: list[tuple[Tensor, int, int]] = []
        if inputs.ts is not None or inputs.grid is not None:
            ends = [torch.tensor(t, dtype=torch.float64, requires_grad=True) for t in ends]
            kind, at = (1, n) if inputs.grid is not None else (0, 0)
            timed = [(ends[0], kind, at), (ends[1], kind, at + kind)]
        if inputs.ts is not None:
            for i, (slot, t, _) in enumerate(seeds):
                if slot in chain.columns:
                    targets[i] = torch.tensor(t, dtype=torch.float64, requires_grad=True)
                    timed.append((targets[i], 0, chain.columns[slot]))
        with torch.enable_grad():
            y1, *found = chain.take(self.field, n, tuple(leaves), ends[0], ends[1], targets)
        carried = found[len(seeds) :]
        pairs = [(y1, upstream[0]), *zip(carried, upstream[1:], strict=True)]
        pairs += [(x, g) for x, (_, _, g) in zip(found, seeds, strict=False)]
        pairs = [(x, g) for x, g in pairs if g is not None and x.requires_grad]
        if not pairs:
            self.upstream = [None] * len(upstream)
            return
        gradients = torch.autograd.grad(
            [x for x, _ in pairs],
            [*leaves, *(x for x, _, _ in timed), *self.sums.wanted],
            [g for _, g in pairs],
            allow_unused=True,
        )
        for (_, kind, index), g in zip(timed, gradients[len(leaves) :], strict=False):
            into = self.by_time[kind]
            if g is not None and into is not None:
                into[index] += g.to(into)
        self.sums.add(gradients[len(leaves) + len(timed) :])
        self.upstream = list(gradients[: len(leaves)])

    def _through_graph(self, steps: int) -> Tensor | None:
        """The cotangent of y0, the graph of the first steps being there."""
        chain = self.chain
        slots = [slot for n in range(steps) for slot, _ in chain.outputs.get(n, ())]
        slots += [chain.carried[n] for n in range(steps) if n in chain.carried]
        found = self.chain.graph.pull(slots, self.cotangents, self.upstream)
        rest = len(self.sums.wanted)
        self.sums.add(found[len(found) - rest :])
        return found[0] if len(found) > rest else None

    def _through_first_slope(self) -> Tensor | None:
        """The cotangent of y0, where the method takes the slope at the start over into step 0."""
        y0, inputs = self.upstream[0], self.inputs
        if len(self.upstream) == 1 or self.upstream[1] is None:
            return y0
        leaves, again = inputs.with_leaves()
        with torch.enable_grad():
            f0 = self.chain.initial(self.field, again)[1]
        if not f0.requires_grad:
            return y0
        sources = [*leaves, *self.sums.wanted]
        mu, *rest = torch.autograd.grad(f0, sources, self.upstream[1], allow_unused=True)
        if self.by_time[0] is not None and rest[0] is not None:
            self.by_time[0] += rest[0]
        self.sums.add(rest[len(leaves) - 1 :])
        return y0 if mu is None else mu if y0 is None else y0 + mu
