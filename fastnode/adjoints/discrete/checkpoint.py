"""The exact gradient of a solve from the states at which its steps begin.

The forward pass runs without a graph and keeps the state at each accepted step (or some of them,
see revolve.py); the backward pass takes the accepted steps again, the last one first, and
differentiates each (backward_pass.py). Rejected steps cost nothing, and steps whose graph is small
are not recomputed (kept_graph.py). Source: A. Gholami, K. Keutzer, G. Biros, ANODE,
IJCAI 2019, arXiv 1902.10298, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastnode.adjoints.discrete.autograd_node import (
    Cotangents,
    Inputs,
    NotifyingStepper,
    Random,
    State,
    solve_in_one_node,
    with_args,
)
from fastnode.adjoints.discrete.retained_graph import RetainedGraph
from fastnode.adjoints.discrete.revolve import Keeper, reverse
from fastnode.adjoints.discrete.step_transpose import (
    Gradients,
    Scheme,
    StepStart,
    derivatives_of,
    seeded,
    transpose,
)
from fastnode.adjoints.discrete.step_transpose import take as take_step
from fastnode.extension import empty_cache
from fastnode.problem.ivp import Problem, Time, VectorField, to_float
from fastnode.recording.joint import Recording
from fastnode.solution import Solution
from fastnode.torch_support.recompute import LARGE, ReplayableField, Surroundings

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
        reverse(states, len(chain.edges) - 1, chain.slots, self._advance, self._vjp)
        if first:
            y0 = self._through_graph(first)
        else:
            y0 = self._through_first_derivative()
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

    def _vjp(self, n: int, state: State) -> None:
        chain = self.chain
        if chain.frugal:
            self._tidy(state[0])
        seeds = [
            (slot, t, g.contiguous())
            for slot, t in chain.outputs.get(n, ())
            if (g := self.cotangents[slot]) is not None
        ]
        derivative = self.cotangents[chain.carried[n]] if n in chain.carried else None
        if derivative is not None:
            after = self.upstream[1]
            self.upstream = [self.upstream[0], derivative if after is None else after + derivative]
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
        start, before = StepStart(n, t, t1, *state), self.chain.random.before(n)
        terms = seeded(scheme, start, list(merged.items()), carried)
        k = None
        if self.chain.frugal:
            with torch.no_grad():
                earlier = scheme.needed(list(terms))[:-1]
                k = derivatives_of(self.field, scheme, start, earlier, before)
        direct = list(merged.values())
        found = transpose(self.field, scheme, start, terms, direct, self.sums, before, k)
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
                if slot in chain.columns and chain.ends_at_outputs:
                    targets[i] = None
                elif slot in chain.columns:
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
        found = self.chain.graph.vjp(slots, self.cotangents, self.upstream)
        rest = len(self.sums.wanted)
        self.sums.add(found[len(found) - rest :])
        return found[0] if len(found) > rest else None

    def _through_first_derivative(self) -> Tensor | None:
        """The cotangent of y0, where the method takes the derivative at the start over into step
        0."""
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
        keeps_graph: whether steps whose graph is small are not recomputed (``RetainedGraph``).
        ends_at_outputs: whether each step leads from one output time to the next.
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
        keeps_graph: bool = False,
        ends_at_outputs: bool = False,
    ):
        self.problem, self.scheme, self.slots, self.needed = problem, scheme, slots, needed
        self.record, self.make_stepper, self.throw = record, make_stepper, throw
        self.frugal, self.ends_at_outputs = frugal, ends_at_outputs
        device = problem.field.device
        self.observed = ReplayableField(problem.field.func, problem.y0, frugal)
        self.surroundings = Surroundings(problem.field.func, device)
        self.random = Random(self.observed)
        self.graph = RetainedGraph(self.observed, scheme, keeps_graph)
        self.recording: Recording | None = None
        self.edges: list[float] = []
        #: The steps of the kept states, and the outputs of each step: (place among all, time).
        self.steps_kept: list[int] = []
        self.outputs: dict[int, list[tuple[int, float]]] = {}
        #: Of the outputs at times of the caller's: which of these it is.
        self.columns: dict[int, int] = {}
        #: For dense output the derivatives that steps carry on, and which output that of each step
        #: is.
        self.derivatives: list[Tensor] = []
        self.carried: dict[int, int] = {}
        self._last_evaluation = 0

    def run(self, inputs: Inputs) -> tuple[list[Tensor], list[Tensor]]:
        keeper, graph = Keeper(self.slots), self.graph
        inner = self._inner(inputs)
        recording = self.recording = self.record(inner)
        recording.keeps_derivatives = False

        def make() -> Any:
            visit = partial(self._visit, keeper)
            return NotifyingStepper(self.make_stepper(inner), graph.begin, visit)

        with self.surroundings.forward(), graph.recorded(inputs, self.problem.y0.requires_grad):
            recording.run(make, self.throw)
        self.steps_kept = list(keeper.kept)
        outputs = self._collect(recording)
        graph.keep(outputs)
        return outputs, [x.detach() for state in keeper.kept.values() for x in state]

    def recompute(self, inputs: Inputs) -> list[Tensor]:
        field = self.field(inputs)
        times, grid = inputs.ts, inputs.grid
        shift = _shift(times)
        found: dict[int, Tensor] = {}
        state = self.initial(field, inputs)
        for n in range(len(self.edges) - 1):
            t, t1 = self._ends(n, shift, grid)
            targets = [self._target(slot, t, times) for slot, t in self.outputs.get(n, ())]
            y, *outputs = self.take(field, n, state, t, t1, targets)
            state = (y, *outputs[len(targets) :])
            if n in self.carried:
                found[self.carried[n]] = state[1]
            found.update(zip((slot for slot, _ in self.outputs.get(n, ())), outputs, strict=False))
        return [found[slot] for slot in range(len(found))]

    def vjp(
        self, inputs: Inputs, kept: Sequence[Tensor], cotangents: Cotangents
    ) -> list[Tensor | None]:
        return BackwardPass(self, inputs, cotangents).run(kept)

    def _visit(self, keeper: Keeper, step: Any) -> None:
        n = len(self.edges) - 1
        if n < 0:
            n, self.edges = 0, [step.t]
        self.edges.append(step.t1)
        carries = self.scheme.carries
        if carries and self.recording is not None and self.recording.save == "dense":
            self.derivatives.append(step.k[self.scheme.last])
        if not self.graph.visit((step.y1, step.k[self.scheme.last]) if carries else (step.y1,)):
            keeper.offer(n, lambda: (step.y, step.k[0]) if carries else (step.y,))
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
        for n, derivative in enumerate(self.derivatives):
            self.carried[n] = len(found)
            found.append(derivative)
        self.derivatives = []
        return found

    def rewrite(self, inputs: Inputs, outputs: Sequence[Tensor]) -> Recording:
        """The recording, with the tensors that autograd knows in place of those it does not."""
        assert self.recording is not None
        # Its tensors lead to the node that holds this object: no circle.
        recording, self.recording = self.recording, None
        recording.rewrite(self.problem, iter(outputs))
        if recording.save == "dense":
            derivatives = [outputs[slot] for slot in self.carried.values()]
            starts = enumerate(recording.states[: len(self.edges) - 1])
            recording.steps = [
                _RecomputedStep(
                    self, inputs, n, (y, derivatives[n - 1]) if n and derivatives else (y,)
                )
                for n, y in starts
            ]
        return recording

    def inside(self, inputs: Inputs, n: int, state: State, times: Sequence[Time]) -> list[Tensor]:
        """The solution at times inside step n, with its graph; ``state`` is what the step begins
        with, without the derivative at the start of all steps."""
        field, ends = self.problem.field, self._ends(n, _shift(inputs.ts), inputs.grid)
        with self.surroundings.recomputation(bool(self.observed.draws)):
            if n == 0:
                state = self.initial(field, inputs)
            return self.take(field, n, state, *ends, times)[1 : len(times) + 1]

    def _inner(self, inputs: Inputs) -> Problem:
        outer = self.problem
        field = self.field(inputs)
        return outer.with_(field=field, y0=inputs.y0, t=outer.t.detach())

    def field(self, inputs: Inputs) -> VectorField:
        return with_args(self.problem, self.observed, self.needed, inputs)

    def initial(self, field: VectorField, inputs: Inputs) -> State:
        if not self.scheme.carries:
            return (inputs.y0,)
        if self.random.places:
            self.observed.replay(0)
        start = self.problem.times[0] if inputs.ts is None else inputs.ts[0].double().cpu()
        return inputs.y0, field(start, inputs.y0)

    def take(
        self, field: VectorField, n: int, state: State, t: Time, t1: Time, targets: Sequence[Any]
    ) -> list[Tensor]:
        """The state after step n, the outputs at ``targets`` and what is carried on."""
        start = StepStart(n, t, t1, *state)
        return take_step(field, self.scheme, start, [None, *targets], self.random.before(n))

    def _ends(self, n: int, shift: Any, grid: Tensor | None) -> tuple[Time, Time]:
        if grid is not None:
            return grid[n], grid[n + 1]
        return self.edges[n] + shift, self.edges[n + 1] + shift

    def _target(self, slot: int, t: float, times: Tensor | None) -> Time | None:
        if times is None or slot not in self.columns:
            return t
        if self.ends_at_outputs:
            return None
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
    keeps_graph: bool = False,
    kind: type[StepChain] = StepChain,
) -> Solution:
    """The solution of a joint solve with the gradients of ``StepChain``.

    Args:
        grid: where fixed steps begin and end; empty for a method that chooses its steps.
        keeps_graph: whether the graph of steps may be kept where it is small: not where the caller
            is shown what happens inside, which then would have a graph.
        kind: how the backward pass is made.
    """
    args = problem.field.args
    needed = [i for i, x in enumerate(args) if isinstance(x, Tensor) and x.requires_grad]
    plain: list[Time] = [to_float(t) for t in grid]
    chain = kind(
        problem,
        scheme,
        slots,
        needed,
        record,
        lambda inner: make_stepper(inner, plain),
        throw,
        frugal=slots is not None,
        keeps_graph=keeps_graph and slots is None and not problem.t.requires_grad,
        ends_at_outputs=grid is problem.times,
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


@dataclass(frozen=True, eq=False)
class _RecomputedStep:
    """A step whose stages are recomputed each time that it is evaluated inside."""

    chain: StepChain
    inputs: Inputs
    n: int
    state: State

    def at_all(self, times: Sequence[Time]) -> list[Tensor]:
        return self.chain.inside(self.inputs, self.n, self.state, times)
