"""A solve as one node of the autograd graph, whose backward pass recomputes its steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from fastnode.engines.reference.step import Step
from fastnode.problem.ivp import Problem, VectorField
from fastnode.torch_support.batched_grads import for_each_cotangent
from fastnode.torch_support.partial_grad import PartialGradGates
from fastnode.torch_support.recompute import ReplayableField, Surroundings

#: What one step begins with: its state, and what else the method takes over from the step before.
State = tuple[Tensor, ...]
#: The cotangents of all outputs, None where there is none.
Cotangents = Sequence[Tensor | None]


@dataclass(eq=False)
class Inputs:
    """The tensors that a solve depends on and that autograd may want gradients of.

    ``ts`` are the caller's times and ``grid`` the ends of fixed steps, None where they need no
    gradient. ``args`` are those of the caller's that need one, ``params`` what func holds, or what
    the chain hands to it, if ``handed``.
    """

    y0: Tensor
    ts: Tensor | None
    grid: Tensor | None
    args: tuple[Tensor, ...]
    params: tuple[Tensor, ...]
    handed: bool = False

    def flat(self) -> list[Tensor | None]:
        return [self.y0, self.ts, self.grid, *self.args, *self.params]

    def like(self, flat: Sequence[Any]) -> Inputs:
        """Other tensors in the same places."""
        y0, ts, grid, *rest = flat
        count = len(self.args)
        return Inputs(y0, ts, grid, tuple(rest[:count]), tuple(rest[count:]), self.handed)

    def with_leaves(self) -> tuple[list[Tensor], Inputs]:
        """Leaves of their own for y0 and, if they need gradients, ts; and all with those."""
        leaves = [x.detach().requires_grad_() for x in (self.y0, self.ts) if x is not None]
        return leaves, self.like([*leaves, *self.flat()[len(leaves) :]])

    def detached(self) -> Inputs:
        """Leaves of their own, but for the parameters, which func holds and not us."""
        own = [None if x is None else x.detach() for x in self.flat()[: 3 + len(self.args)]]
        return self.like([*own, *self.params])


class Chain(Protocol):
    """A solve whose steps can be recomputed."""

    observed: ReplayableField
    surroundings: Surroundings

    def run(self, inputs: Inputs) -> tuple[list[Tensor], list[Tensor]]:
        """Solves; returns the outputs and the states that the backward pass needs."""
        ...

    def recompute(self, inputs: Inputs) -> list[Tensor]:
        """The outputs of the same steps, differentiable."""
        ...

    def vjp(
        self, inputs: Inputs, kept: Sequence[Tensor], cotangents: Cotangents
    ) -> list[Tensor | None]:
        """The gradients of ``inputs.flat()``."""
        ...


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, chain: Chain, inputs: Inputs, *flat: Tensor | None) -> Any:
        outputs, kept = chain.run(inputs.detached())
        ctx.chain, ctx.inputs, ctx.count = chain, inputs.like([None] * len(flat)), len(flat)
        ctx.save_for_backward(*flat, *kept)
        ctx.set_materialize_grads(False)
        # A solve that failed at once has none.
        # One tensor in two places would be one output; its graph may be kept elsewhere.
        seen: set[int] = set()
        for i, x in enumerate(outputs):
            outputs[i] = x.detach() if x.requires_grad or id(x) in seen else x
            seen.add(id(x))
        return tuple(outputs) or flat[0].new_empty(0)  # pyright: ignore

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        chain: Chain = ctx.chain
        saved = ctx.saved_tensors
        inputs = ctx.inputs.like(saved[: ctx.count])
        wanted = ctx.needs_input_grad[2:]
        if all(g is None for g in cotangents):
            return (None,) * (2 + ctx.count)

        def gradients(cotangents: Cotangents) -> list[Tensor | None]:
            with chain.surroundings.recomputation(bool(chain.observed.draws), inputs.params):
                if torch.is_grad_enabled():
                    return _differentiably(chain, inputs, wanted, cotangents)
                return chain.vjp(inputs.detached(), saved[ctx.count :], cotangents)

        found = zip(for_each_cotangent(gradients, cotangents), wanted, strict=True)
        return None, None, *(g if needed else None for g, needed in found)


def _differentiably(
    chain: Chain, inputs: Inputs, wanted: Sequence[bool], cotangents: Cotangents
) -> list[Tensor | None]:
    """Gradients that have gradients: all steps at once, each with its graph."""
    gates = PartialGradGates()
    own = len(inputs.flat()) if inputs.handed else 3 + len(inputs.args)
    flat = [*map(gates, inputs.flat()[:own]), *inputs.flat()[own:]]
    inputs = inputs.like(flat)
    pairs = zip(chain.recompute(inputs), cotangents, strict=True)
    outputs, seeds = zip(*((x, g) for x, g in pairs if g is not None), strict=True)
    # A parameter that was frozen since the forward pass gets none, as by backprop.
    needed = [
        asked and x is not None and x.requires_grad for x, asked in zip(flat, wanted, strict=True)
    ]
    sources = [x for x, each in zip(flat, needed, strict=True) if each and x is not None]
    if not sources:
        return [None] * len(flat)
    found = iter(torch.autograd.grad(outputs, sources, seeds, create_graph=True, allow_unused=True))
    filled: list[Tensor | None] = []
    for x, each in zip(flat, needed, strict=True):
        g = next(found) if each else None
        filled.append(torch.zeros_like(x) if each and g is None and x is not None else g)
    gates.open()
    return filled


def solve_in_one_node(chain: Chain, inputs: Inputs) -> tuple[Tensor, ...]:
    """The outputs of ``chain``, with their gradients."""
    return _Solve.apply(chain, inputs, *inputs.flat())  # pyright: ignore[reportReturnType]


def with_args(
    problem: Problem, observed: ReplayableField, needed: Sequence[int], inputs: Inputs
) -> VectorField:
    """The field of ``problem`` seen by ``observed``, the arguments ``needed`` being those of
    ``inputs``."""
    outer = problem.field
    args = list(outer.args)
    for i, x in zip(needed, inputs.args, strict=True):
        args[i] = x
    return VectorField(
        observed, outer.layout, inputs.y0, outer.direction, tuple(args), outer.warn_of_cast
    )


@dataclass(eq=False)
class Random:
    """Which evaluations of the forward pass belong to which step."""

    observed: ReplayableField
    #: For each step the evaluation of its first stage and that of its second.
    places: list[tuple[int, int]] = field(default_factory=list)

    def note(self, first: int, second: int) -> None:
        if self.observed.draws:
            self.places.append((first, second))

    def before(self, n: int) -> Callable[[int], None]:
        """To be called with a stage of step n before it is evaluated again."""

        def set_generators(stage: int) -> None:
            if self.observed.draws:
                first, second = self.places[n]
                self.observed.replay(first if stage == 0 else second + stage - 1)

        return set_generators


class NotifyingStepper:
    """A stepper that calls ``begin`` before each step and ``visit`` with each accepted step."""

    def __init__(self, stepper: Any, begin: Callable[[], None], visit: Callable[[Step], None]):
        self._stepper, self._begin, self._visit = stepper, begin, visit

    def advance(self) -> Any:
        self._begin()
        step = self._stepper.advance()
        self._visit(step)
        return step

    @property
    def rejected(self) -> int:
        return self._stepper.rejected

    @property
    def evaluations(self) -> int:
        return getattr(self._stepper, "evaluations", 0)
