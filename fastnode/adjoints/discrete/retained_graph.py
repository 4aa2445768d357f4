"""The graph of the first steps of a solve, kept where it is so small that to record the steps again
would spare nothing worth having."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from fastnode.adjoints.discrete.autograd_node import Cotangents, Inputs
from fastnode.adjoints.discrete.step_transpose import Scheme
from fastnode.torch_support.kept_graph import keeping_graph
from fastnode.torch_support.recompute import ReplayableField

#: Bytes of a graph that one solve may keep. Where all of it fits a solve takes the time of
#: backprop; to take the steps again makes it 1.75 times as long for 2 features and 32 samples.
ROOM = 2**22


class RetainedGraph:
    """Records steps for as long as there is room, from the first one on.

    Args:
        observed: the field, which measures what the graph of one evaluation holds.
        scheme: what the steps have in common.
        wanted: whether there may be a graph at all.
    """

    def __init__(self, observed: ReplayableField, scheme: Scheme, wanted: bool):
        self.observed, self.scheme = observed, scheme
        #: Number of steps whose graph is there.
        self.steps = 0
        self._open = wanted
        self._leaves: list[Tensor] = []
        self._outputs: list[Tensor] = []
        #: What the step after the kept ones begins with.
        self._ends: list[Tensor] = []

    @contextmanager
    def recorded(self, inputs: Inputs, y0_needed: bool) -> Iterator[None]:
        """The forward pass, from leaves that ``inputs`` holds."""
        # A field keeps its argument and, for each layer more, at least as much again.
        self._open = self._open and self._fits(2 * inputs.y0.nbytes, 0)
        if self._open:
            own = [*([inputs.y0] if y0_needed else []), *inputs.args]
            self._leaves = [*(x.requires_grad_() for x in own), *inputs.params]
        with torch.set_grad_enabled(self._open):
            yield

    def begin(self) -> None:
        """A step is about to be taken: the recording ends if it may not fit."""
        if self._open and not self._fits(self.observed.graph_bytes, self.observed.count):
            self._open = False
            torch.set_grad_enabled(False)

    def visit(self, ends: Sequence[Tensor]) -> bool:
        """Whether the graph of the step that was just taken is kept; ``ends`` are what the next one
        begins with."""
        if self._open:
            self.steps += 1
            self._ends = list(ends)
        return self._open

    def keep(self, outputs: Sequence[Tensor]) -> None:
        """The outputs of the solve."""
        self._outputs = list(outputs) if self.steps else []

    def vjp(
        self, slots: Sequence[int], cotangents: Cotangents, upstream: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        """The gradients of the leaves that require one: y0, if it needs one, args and params.

        Args:
            slots: which outputs lie in the kept steps.
            cotangents: of all outputs.
            upstream: of what the step after the kept ones begins with.
        """
        pairs = [(self._outputs[slot], cotangents[slot]) for slot in slots]
        pairs += zip(self._ends, upstream, strict=True)
        known = [(x, g) for x, g in pairs if g is not None and x.requires_grad]
        leaves = [x for x in self._leaves if x.requires_grad]
        if not (known and leaves):
            return [None] * len(leaves)
        roots, seeds = zip(*known, strict=True)
        # Kept, as a backward pass may be asked for twice.
        found, kept = keeping_graph(
            lambda keep: torch.autograd.grad(
                roots, leaves, seeds, retain_graph=keep, allow_unused=True
            )
        )
        if not kept:
            # Another backward pass takes these steps again.
            self.steps, self._leaves, self._outputs, self._ends = 0, [], [], []
        return list(found)

    def _fits(self, bytes_each: int, evaluations: int) -> bool:
        return (evaluations + self.scheme.last + 1) * bytes_each <= ROOM
