"""The exact gradient of a solve from the states at which its steps begin.

The forward pass runs without a graph and keeps the state at each accepted step (or some of them,
see revolve.py); the backward pass takes the accepted steps again, the last one first, and
differentiates each. Rejected steps cost nothing. Source: A. Gholami, K. Keutzer, G. Biros, ANODE,
IJCAI 2019, arXiv 1902.10298, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastnode.adjoints.chain import Cotangents, Inputs, Random, State, solve_in_one_node, with_args
from fastnode.adjoints.recompute import Observed, Surroundings
from fastnode.adjoints.revolve import Keeper, reverse
from fastnode.adjoints.stages import (
    Gradients,
    Place,
    Scheme,
    seeded,
    slopes_of,
    take,
    transpose,
)
from fastnode.engines.step import Step
from fastnode.problem import Problem, Time, VectorField, to_float
from fastnode.recording import Recording
from fastnode.solution import Solution

#: Elements of a state below which a step is differentiated by one call of autograd and not by one
#: for each stage: faster by the overhead of the calls, at the cost of memory that is small.
SMALL = 16384


class StepChain:
    """The steps of one joint solve.

    Args:
        problem: the caller's.
        scheme: what the steps have in common.
        slots: states kept, None for all.
        needed: positions among args of those that need a gradient.
        record: makes the Recording of an inner problem, in which nothing needs a gradient.
        make_stepper: makes the stepper of an inner problem.
        throw: whether a solve that cannot go on raises.
        frugal: one stage's graph at a time.
    """

    def __init__(
        self,
        problem: Problem,
        scheme: Scheme,
        slots: int | None,
        needed: Sequence[int],
        record: Callable[[Problem], Recording],
        make_stepper: Callable[[Problem], Any],
        throw: bool,
        frugal: bool = False,
    ):
        self.problem, self.scheme, self.slots, self.needed = problem, scheme, slots, needed
        self.record, self.make_stepper, self.throw = record, make_stepper, throw
        self.frugal = frugal
        device = problem.field.device
        self.observed = Observed(problem.field.func, problem.y0, frugal)
        self.surroundings = Surroundings(problem.field.func, device)
        self.random = Random(self.observed)
        self.recording: Recording | None = None
        self.edges: list[float] = []
        #: The steps of the kept states, and the outputs of each step: (place among all, time).
        self.steps_kept: list[int] = []
        self.outputs: dict[int, list[tuple[int, float]]] = {}
        #: Of the outputs at times of the caller's: which of these it is.
        self.columns: dict[int, int] = {}
        self._last_evaluation = 0

    def run(self, inputs: Inputs) -> tuple[list[Tensor], list[Tensor]]:
        keeper = Keeper(self.slots)
        inner = self._inner(inputs)
        recording = self.recording = self.record(inner)
        recording.keeps_slopes = False

        def make() -> Any:
            return _Watched(self.make_stepper(inner), lambda step: self._visit(step, keeper))

        with self.surroundings.first():
            recording.run(make, self.throw)
        self.steps_kept = list(keeper.kept)
        outputs = self._collect(recording)
        return outputs, [x for state in keeper.kept.values() for x in state]

    def again(self, inputs: Inputs) -> list[Tensor]:
        field = self._field(inputs)
        times, grid = inputs.ts, inputs.grid
        shift = _shift(times)
        found: dict[int, Tensor] = {}
        state = self._initial(field, inputs)
        for n in range(len(self.edges) - 1):
            t, t1 = self._ends(n, shift, grid)
            targets = [self._target(slot, t, times) for slot, t in self.outputs.get(n, ())]
            y, *outputs = self._take(field, n, state, t, t1, targets)
            state = (y, *outputs[len(targets) :])
            found.update(zip((slot for slot, _ in self.outputs.get(n, ())), outputs, strict=False))
        return [found[slot] for slot in range(len(found))]

    def pull(
        self, inputs: Inputs, kept: Sequence[Tensor], cotangents: Cotangents
    ) -> list[Tensor | None]:
        times, grid = inputs.ts, inputs.grid
        for x in inputs.args:
            x.requires_grad_()
        by_time = [None if x is None else torch.zeros_like(x) for x in (times, grid)]
        sums = Gradients([*inputs.args, *inputs.params])
        field = self._field(inputs)
        width = 2 if self.scheme.carries else 1
        with torch.no_grad():
            states: dict[int, State] = {0: self._initial(field, inputs)}
        for i, n in enumerate(self.steps_kept):
            states[n] = tuple(x.detach() for x in kept[i * width : (i + 1) * width])
        upstream: list[Tensor | None] = [None] * width

        def advance(m: int, n: int, state: State) -> State:
            with torch.no_grad():
                for i in range(m, n):
                    state = tuple(self._take(field, i, state, self.edges[i], self.edges[i + 1], []))
            return state

        def pull(n: int, state: State) -> None:
            nonlocal upstream
            seeds = [
                (slot, t, g.contiguous())
                for slot, t in self.outputs.get(n, ())
                if (g := cotangents[slot]) is not None
            ]
            if not seeds and all(g is None for g in upstream):
                return
            if times is None and grid is None and (self.frugal or state[0].numel() >= SMALL):
                upstream = self._by_stages(field, n, state, seeds, upstream, sums)
            else:
                upstream = self._by_step(field, n, state, seeds, upstream, sums, by_time, inputs)

        reverse(states, len(self.edges) - 1, self.slots, advance, pull)
        y0 = upstream[0]
        if self.scheme.carries and upstream[1] is not None:
            y0 = self._through_first_slope(field, inputs, y0, upstream[1], sums, by_time[0])
        return [y0, *by_time, *sums.sums]

    def _by_stages(
        self,
        field: VectorField,
        n: int,
        state: State,
        seeds: list[tuple[int, float, Tensor]],
        upstream: list[Tensor | None],
        sums: Gradients,
    ) -> list[Tensor | None]:
        """The cotangents of the state at step n, each stage differentiated on its own."""
        t, t1 = self.edges[n : n + 2]
        merged: dict[float, Tensor] = {} if upstream[0] is None else {t1: upstream[0]}
        for _, target, g in seeds:
            merged[target] = merged[target] + g if target in merged else g
        carried = upstream[1] if self.scheme.carries else None
        place, before = Place(n, t, t1, *state), self.random.before(n)
        terms = seeded(self.scheme, place, list(merged.items()), carried)
        k = None
        if self.frugal:
            with torch.no_grad():
                earlier = self.scheme.needed(list(terms))[:-1]
                k = slopes_of(field, self.scheme, place, earlier, before)
        direct = list(merged.values())
        found = transpose(field, self.scheme, place, terms, direct, sums, before, k)
        return list(found[: len(upstream)])

    def _by_step(
        self,
        field: VectorField,
        n: int,
        state: State,
        seeds: list[tuple[int, float, Tensor]],
        upstream: list[Tensor | None],
        sums: Gradients,
        by_time: list[Tensor | None],
        inputs: Inputs,
    ) -> list[Tensor | None]:
        """The same by one call of autograd, for times that need gradients too."""
        leaves = [x.detach().requires_grad_() for x in state]
        ends: list[Any] = self.edges[n : n + 2]
        targets: list[Any] = [t for _, t, _ in seeds]
        timed: list[tuple[Tensor, int, int]] = []
        if inputs.ts is not None or inputs.grid is not None:
            ends = [torch.tensor(t, dtype=torch.float64, requires_grad=True) for t in ends]
            kind, at = (1, n) if inputs.grid is not None else (0, 0)
            timed = [(ends[0], kind, at), (ends[1], kind, at + kind)]
        if inputs.ts is not None:
            for i, (slot, t, _) in enumerate(seeds):
                if slot in self.columns:
                    targets[i] = torch.tensor(t, dtype=torch.float64, requires_grad=True)
                    timed.append((targets[i], 0, self.columns[slot]))
        with torch.enable_grad():
            y1, *found = self._take(field, n, tuple(leaves), ends[0], ends[1], targets)
        carried = found[len(seeds) :]
        pairs = [(y1, upstream[0]), *zip(carried, upstream[1:], strict=True)]
        pairs += [(x, g) for x, (_, _, g) in zip(found, seeds, strict=False)]
        pairs = [(x, g) for x, g in pairs if g is not None and x.requires_grad]
        if not pairs:
            return [None] * len(upstream)
        gradients = torch.autograd.grad(
            [x for x, _ in pairs],
            [*leaves, *(x for x, _, _ in timed), *sums.wanted],
            [g for _, g in pairs],
            allow_unused=True,
        )
        for (_, kind, index), g in zip(timed, gradients[len(leaves) :], strict=False):
            into = by_time[kind]
            if g is not None and into is not None:
                into[index] += g.to(into)
        sums.add(gradients[len(leaves) + len(timed) :])
        return list(gradients[: len(leaves)])

    def _through_first_slope(
        self,
        field: VectorField,
        inputs: Inputs,
        y0: Tensor | None,
        cotangent: Tensor,
        sums: Gradients,
        by_time: Tensor | None,
    ) -> Tensor | None:
        """The cotangent of y0, where the method takes the slope at the start over into step 0."""
        leaves = [inputs.y0.detach().requires_grad_()]
        if inputs.ts is not None:
            leaves.append(inputs.ts.detach().requires_grad_())
        with torch.enable_grad():
            again = inputs.like([*leaves, *inputs.flat()[len(leaves) :]])
            f0 = self._initial(field, again)[1]
        if not f0.requires_grad:
            return y0
        found = torch.autograd.grad(f0, [*leaves, *sums.wanted], cotangent, allow_unused=True)
        mu, *rest = found
        if by_time is not None and rest[0] is not None:
            by_time += rest[0]
        sums.add(rest[len(leaves) - 1 :])
        return y0 if mu is None else mu if y0 is None else y0 + mu

    def _visit(self, step: Any, keeper: Keeper) -> None:
        n = len(self.edges) - 1
        if n < 0:
            n, self.edges = 0, [step.t]
        self.edges.append(step.t1)
        keeper.offer(n, lambda: (step.y, step.k[0]) if self.scheme.carries else (step.y,))
        stages, count = len(self.scheme.tableau.a), self.observed.count
        second = count - stages + 1
        first = self._last_evaluation if self.scheme.adaptive else second - 1
        self.random.note(first, second)
        self._last_evaluation = count - 1

    def _collect(self, recording: Recording) -> list[Tensor]:
        """All tensors of the recording that have gradients, and in which step each lies."""
        found: list[Tensor] = []

        def add(n: int, t: float, value: Tensor) -> None:
            self.outputs.setdefault(n, []).append((len(found), t))
            found.append(value)

        times = recording.problem.t.tolist()
        for j, n in enumerate(recording.within, start=1):
            self.columns[len(found)] = j
            add(n, times[j], recording.outputs[j])
        for n, value in enumerate(recording.states[1:]):
            add(n, self.edges[n + 1], value)
        for n, event in recording.watch.all_found():
            add(n, event.t, event.y)
        return found

    def rewrite(self, inputs: Inputs, outputs: Sequence[Tensor]) -> Recording:
        """The recording, with the tensors that autograd knows in place of those it does not."""
        assert self.recording is not None
        recording, rest = self.recording, iter(outputs)
        # Its tensors lead to the node that holds this object: no circle.
        self.recording = None
        inner = recording.problem
        recording.outputs[0] = recording.states[0] = self.problem.y0
        for j in range(1, len(recording.within) + 1):
            recording.outputs[j] = next(rest)
        for n in range(1, len(recording.states)):
            recording.states[n] = next(rest)
        recording.watch.replace_states(rest)
        recording.problem = Problem(inner.field, inner.layout, self.problem.y0, self.problem.t)
        if recording.save == "dense":
            starts = recording.states[: len(self.edges) - 1]
            recording.steps = [_Again(self, inputs, n, y) for n, y in enumerate(starts)]
        return recording

    def inside(self, inputs: Inputs, n: int, y: Tensor, times: Sequence[Time]) -> list[Tensor]:
        """The solution at times inside step n, which begins with y, with its graph."""
        ends = self._ends(n, _shift(inputs.ts), inputs.grid)
        with self.surroundings.again(bool(self.observed.draws)):
            return self._take(self.problem.field, n, (y,), *ends, times)[1:]

    def _inner(self, inputs: Inputs) -> Problem:
        outer = self.problem
        field = self._field(inputs)
        return Problem(field, outer.layout, inputs.y0, outer.t.detach())

    def _field(self, inputs: Inputs) -> VectorField:
        return with_args(self.problem, self.observed, self.needed, inputs)

    def _initial(self, field: VectorField, inputs: Inputs) -> State:
        if not self.scheme.carries:
            return (inputs.y0,)
        if self.random.places:
            self.observed.replay(0)
        start = self.problem.times[0] if inputs.ts is None else inputs.ts[0].double().cpu()
        return inputs.y0, field(start, inputs.y0)

    def _take(
        self, field: VectorField, n: int, state: State, t: Time, t1: Time, targets: Sequence[Any]
    ) -> list[Tensor]:
        """The state after step n, the outputs at ``targets`` and what is carried on."""
        place = Place(n, t, t1, *state)
        return take(field, self.scheme, place, [None, *targets], self.random.before(n))

    def _ends(self, n: int, shift: Any, grid: Tensor | None) -> tuple[Time, Time]:
        if grid is not None:
            return grid[n], grid[n + 1]
        return self.edges[n] + shift, self.edges[n + 1] + shift

    def _target(self, slot: int, t: float, times: Tensor | None) -> Time:
        if times is None or slot not in self.columns:
            return t
        return times[self.columns[slot]].double().cpu()


def checkpointed(
    problem: Problem,
    grid: Sequence[Time],
    scheme: Scheme,
    slots: int | None,
    params: tuple[Tensor, ...],
    record: Callable[[Problem], Recording],
    make_stepper: Callable[[Problem, list[Time]], Any],
    throw: bool,
) -> Solution:
    """The solution of a joint solve with the gradients of ``StepChain``.

    Args:
        grid: where fixed steps begin and end; empty for a method that chooses its steps.
    """
    args = problem.field.args
    needed = [i for i, x in enumerate(args) if isinstance(x, Tensor) and x.requires_grad]
    plain: list[Time] = [to_float(t) for t in grid]
    chain = StepChain(
        problem,
        scheme,
        slots,
        needed,
        record,
        lambda inner: make_stepper(inner, plain),
        throw,
        frugal=slots is not None,
    )
    inputs = Inputs(
        problem.y0,
        problem.t if problem.t.requires_grad else None,
        torch.stack([t for t in grid if isinstance(t, Tensor)])
        if grid and isinstance(grid[0], Tensor)
        else None,
        tuple(args[i] for i in needed),
        params,
    )
    return chain.rewrite(inputs, solve_in_one_node(chain, inputs)).solution()


def _shift(ts: Tensor | None) -> Any:
    """Zero, with the gradient of the start, with which all steps of given sizes move."""
    return 0.0 if ts is None else (ts[0] - ts[0].detach()).double().cpu()


@dataclass(frozen=True)
class _Again:
    """A step whose slopes are evaluated anew each time that somebody looks inside it."""

    chain: StepChain
    inputs: Inputs
    n: int
    y: Tensor

    def at_all(self, times: Sequence[Time]) -> list[Tensor]:
        return self.chain.inside(self.inputs, self.n, self.y, times)


class _Watched:
    """A stepper whose steps are shown to somebody."""

    def __init__(self, stepper: Any, visit: Callable[[Step], None]):
        self._stepper, self._visit = stepper, visit

    def advance(self) -> Any:
        step = self._stepper.advance()
        self._visit(step)
        return step

    @property
    def rejected(self) -> int:
        return self._stepper.rejected

    @property
    def evaluations(self) -> int:
        return getattr(self._stepper, "evaluations", 0)
