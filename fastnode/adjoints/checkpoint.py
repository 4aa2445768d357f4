"""The exact gradient of a solve from the states at which its steps begin.

The forward pass runs without a graph and keeps the state at each accepted step (or some of them,
see revolve.py); the backward pass takes the accepted steps again, the last one first, and
differentiates each (backward_pass.py). Rejected steps cost nothing, and steps whose graph is small
are not taken again (kept_graph.py). Source: A. Gholami, K. Keutzer, G. Biros, ANODE,
IJCAI 2019, arXiv 1902.10298, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastnode.adjoints.backward_pass import BackwardPass
from fastnode.adjoints.chain import Cotangents, Inputs, Random, State, solve_in_one_node, with_args
from fastnode.adjoints.kept_graph import KeptGraph
from fastnode.adjoints.recompute import Observed, Surroundings
from fastnode.adjoints.revolve import Keeper
from fastnode.adjoints.stages import Place, Scheme
from fastnode.adjoints.stages import take as take_step
from fastnode.adjoints.watched import Watched
from fastnode.problem import Problem, Time, VectorField, to_float
from fastnode.recording import Recording
from fastnode.solution import Solution


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
        keeps_graph: whether steps whose graph is small are not taken again (``KeptGraph``).
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
    ):
        self.problem, self.scheme, self.slots, self.needed = problem, scheme, slots, needed
        self.record, self.make_stepper, self.throw = record, make_stepper, throw
        self.frugal = frugal
        device = problem.field.device
        self.observed = Observed(problem.field.func, problem.y0, frugal)
        self.surroundings = Surroundings(problem.field.func, device)
        self.random = Random(self.observed)
        self.graph = KeptGraph(self.observed, scheme, keeps_graph)
        self.recording: Recording | None = None
        self.edges: list[float] = []
        #: The steps of the kept states, and the outputs of each step: (place among all, time).
        self.steps_kept: list[int] = []
        self.outputs: dict[int, list[tuple[int, float]]] = {}
        #: Of the outputs at times of the caller's: which of these it is.
        self.columns: dict[int, int] = {}
        #: For dense output the slopes that steps carry on, and which output that of each step is.
        self.slopes: list[Tensor] = []
        self.carried: dict[int, int] = {}
        self._last_evaluation = 0

    def run(self, inputs: Inputs) -> tuple[list[Tensor], list[Tensor]]:
        keeper, graph = Keeper(self.slots), self.graph
        inner = self._inner(inputs)
        recording = self.recording = self.record(inner)
        recording.keeps_slopes = False

        def make() -> Any:
            visit = partial(self._visit, keeper)
            return Watched(self.make_stepper(inner), graph.begin, visit)

        with self.surroundings.first(), graph.recorded(inputs, self.problem.y0.requires_grad):
            recording.run(make, self.throw)
        self.steps_kept = list(keeper.kept)
        outputs = self._collect(recording)
        graph.keep(outputs)
        return outputs, [x.detach() for state in keeper.kept.values() for x in state]

    def again(self, inputs: Inputs) -> list[Tensor]:
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

    def pull(
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
            self.slopes.append(step.k[self.scheme.last])
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
        for n, slope in enumerate(self.slopes):
            self.carried[n] = len(found)
            found.append(slope)
        self.slopes = []
        return found

    def rewrite(self, inputs: Inputs, outputs: Sequence[Tensor]) -> Recording:
        """The recording, with the tensors that autograd knows in place of those it does not."""
        assert self.recording is not None
        # Its tensors lead to the node that holds this object: no circle.
        recording, self.recording = self.recording, None
        recording.rewrite(self.problem, iter(outputs))
        if recording.save == "dense":
            slopes = [outputs[slot] for slot in self.carried.values()]
            starts = enumerate(recording.states[: len(self.edges) - 1])
            recording.steps = [
                _Again(self, inputs, n, (y, slopes[n - 1]) if n and slopes else (y,))
                for n, y in starts
            ]
        return recording

    def inside(self, inputs: Inputs, n: int, state: State, times: Sequence[Time]) -> list[Tensor]:
        """The solution at times inside step n, with its graph; ``state`` is what the step begins
        with, without the slope at the start of all steps."""
        field, ends = self.problem.field, self._ends(n, _shift(inputs.ts), inputs.grid)
        with self.surroundings.again(bool(self.observed.draws)):
            if n == 0:
                state = self.initial(field, inputs)
            return self.take(field, n, state, *ends, times)[1 : len(times) + 1]

    def _inner(self, inputs: Inputs) -> Problem:
        outer = self.problem
        field = self.field(inputs)
        return Problem(field, outer.layout, inputs.y0, outer.t.detach())

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
        place = Place(n, t, t1, *state)
        return take_step(field, self.scheme, place, [None, *targets], self.random.before(n))

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
class _Again:
    """A step whose slopes are evaluated anew each time that somebody looks inside it."""

    chain: StepChain
    inputs: Inputs
    n: int
    state: State

    def at_all(self, times: Sequence[Time]) -> list[Tensor]:
        return self.chain.inside(self.inputs, self.n, self.state, times)
