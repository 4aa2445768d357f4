"""Solves that can be undone: the algebraically reversible form of an explicit Runge-Kutta method.

With Psi_h(t, y) the increment of one step of the method, a second state z beside y and z_0 = y_0,

    y_{n+1} = L y_n + (1 - L) z_n + Psi_h(t_n, z_n),     z_{n+1} = z_n - Psi_{-h}(t_{n+1}, y_{n+1}),

which has the order of the method and can be solved for (y_n, z_n) exactly,

    z_n = z_{n+1} + Psi_{-h}(t_{n+1}, y_{n+1}),
    y_n = (y_{n+1} - (1 - L) z_n - Psi_h(t_n, z_n)) / L.

So the backward pass needs the two states at the end and nothing else, whatever the number of steps;
its gradient is that of this scheme's own solution, which differs from that of the plain method by
its error. Each step costs twice the evaluations. Steps end at the output times; their sizes are
constants to autograd, but for the last before each output time, which moves with it. Undoing a step
multiplies rounding errors by 1 / L, and the scheme is less stable than the plain method: stiff
problems are not for it. Source: S. McCallum, J. Foster, Efficient, accurate and stable gradients
for Neural ODEs, arXiv 2410.11648, section 3.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from fastnode.adjoints import recorded
from fastnode.adjoints.chain import Cotangents, Inputs, solve_in_one_node, with_args
from fastnode.adjoints.recompute import Observed, Surroundings
from fastnode.adjoints.reversible_backward import Undoing
from fastnode.adjoints.reversible_steps import (
    Partner,
    ReversibleStepper,
    ReversibleSteps,
    increment,
    mixed,
    partner,
)
from fastnode.adjoints.stages import Before, Place, Scheme, nothing
from fastnode.engines.adaptive import Stop
from fastnode.engines.grid import GridStepper
from fastnode.ops.dispatch import transformed
from fastnode.problem import Problem, Time, VectorField, to_float
from fastnode.recording import Recording
from fastnode.solution import Solution
from fastnode.tableaus import Tableau


class ReversibleChain:
    """One solve by two states; the arguments are those of checkpoint.StepChain.

    Args:
        grid: where fixed steps begin and end, output times included; empty for an adaptive method.
        options: of an adaptive stepper.
    """

    def __init__(
        self,
        problem: Problem,
        tableau: Tableau,
        needed: Sequence[int],
        record: Callable[[Problem], Recording],
        grid: Sequence[float],
        max_num_steps: int,
        options: dict[str, Any],
        throw: bool,
    ):
        self.problem, self.needed, self.record = problem, needed, record
        # Stages are evaluated where the step takes them, in either direction of time.
        self.scheme = Scheme(tableau, "cubic", perturb=False)
        self.grid, self.max_num_steps, self.options = list(grid), max_num_steps, options
        self.throw = throw
        device = problem.field.device
        self.observed = Observed(problem.field.func, problem.y0, frugal=True)
        self.surroundings = Surroundings(problem.field.func, device)
        self.stages = self.scheme.needed(tableau.solution_weights.stages)
        self.recording: Recording | None = None
        self.edges: list[float] = []
        self._last_state: Tensor | None = None
        #: For each step the number of the evaluation that comes after that of y at its end.
        self.evaluations: list[int] = []
        #: Step -> which outputs are the state at its end.
        self.outputs: dict[int, list[int]] = {}

    def run(self, inputs: Inputs) -> tuple[list[Tensor], list[Tensor]]:
        problem = self.problem
        inner = Problem(self.field(inputs), problem.layout, inputs.y0, problem.t.detach())
        recording = self.recording = self.record(inner)
        times = inner.t.tolist()
        partner = Partner(self.scheme, inner.y0)

        def make() -> Any:
            if self.grid:
                grid = (
                    inner.field,
                    ReversibleSteps(partner),
                    inner.y0,
                    self.grid,
                    self.max_num_steps,
                )
                return _Noted(GridStepper(*grid), self)
            adaptive = ReversibleStepper(
                partner,
                inner.field,
                times[0],
                inner.y0,
                end=times[-1],
                stops=[Stop(t) for t in times[1:-1]],
                max_num_steps=self.max_num_steps,
                **self.options,
            )
            return _Noted(adaptive, self)

        with self.surroundings.first():
            recording.run(make, self.throw)
            z = partner.z()
        outputs = [recording.outputs[j] for j in range(1, len(recording.within) + 1)]
        for slot, n in enumerate(recording.within):
            self.outputs.setdefault(n, []).append(slot)
        for n in range(len(recording.states) - 1):
            self.outputs.setdefault(n, []).append(len(outputs) + n)
        outputs += recording.states[1:]
        y, self._last_state = self._last_state, None
        return outputs, [] if y is None else [y, z]

    def again(self, inputs: Inputs) -> list[Tensor]:
        field, edges = self.field(inputs), self.times(inputs.ts)
        y = z = inputs.y0
        found: dict[int, Tensor] = {}
        for n, (t, t1) in enumerate(pairwise(edges)):
            y, z = self.take(field, n, t, t1, y, z)
            found.update((slot, y) for slot in self.outputs.get(n, ()))
        return [found[slot] for slot in range(len(found))]

    def pull(
        self, inputs: Inputs, kept: Sequence[Tensor], cotangents: Cotangents
    ) -> list[Tensor | None]:
        return Undoing(self, inputs, cotangents).run(kept)

    def take(
        self, field: VectorField, n: int, t: Time, t1: Time, y: Tensor, z: Tensor
    ) -> tuple[Tensor, Tensor]:
        there, back = self.before(n)
        y1, _ = increment(field, self.scheme, Place(n, t, t1, z), mixed(y, z), there)
        return y1, partner(field, self.scheme, n, t, t1, y1, z, back)

    def times(self, ts: Tensor | None) -> list[Time]:
        """The ends of steps; where times need gradients, each at a fixed distance from the output
        time before it."""
        if ts is None:
            return list(self.edges)
        direction = self.problem.field.direction
        values = [t * direction for t in ts.detach().tolist()]
        wide = ts.double()
        found = []
        for edge in self.edges:
            start = wide[max(0, bisect_right(values, edge * direction) - 1)]
            found.append(start + (edge - start.detach().item()))
        return found

    def before(self, n: int) -> tuple[Before, Before]:
        """What to call before the stages of the step's two increments are evaluated again."""
        if not self.observed.draws:
            return nothing, nothing
        count, back = len(self.stages), self.evaluations[n]
        # In an adaptive solve the slope at which a step begins is evaluated once for all attempts.
        second = back - count if self.grid else back - self.scheme.last - 1
        first = second if self.grid else self.evaluations[n - 1] + count if n else 0

        def there(stage: int) -> None:
            place = self.stages.index(stage) if self.grid else stage
            self.observed.replay(second + place if stage else first)

        return there, lambda stage: self.observed.replay(back + self.stages.index(stage))

    def note(self, step: Any) -> None:
        if not self.edges:
            self.edges.append(step.t)
        self.edges.append(step.t1)
        self.evaluations.append(self.observed.count)
        self._last_state = step.y1

    def rewrite(self, outputs: Sequence[Tensor]) -> Recording:
        """The recording, with the tensors that autograd knows in place of those it does not."""
        assert self.recording is not None
        recording, self.recording = self.recording, None
        recording.rewrite(self.problem, iter(outputs))
        return recording

    def field(self, inputs: Inputs) -> VectorField:
        return with_args(self.problem, self.observed, self.needed, inputs)


def reversibly(
    problem: Problem,
    tableau: Tableau,
    params: tuple[Tensor, ...],
    record: Callable[[Problem], Recording],
    grid: Sequence[Time],
    max_num_steps: int,
    options: dict[str, Any],
    throw: bool,
) -> Solution:
    """The solution by the reversible form of a method, with its gradients.

    Args:
        grid: where fixed steps begin and end; empty for a method that chooses its steps.
        options: of an adaptive stepper.
    """
    args = problem.field.args
    needed = [i for i, x in enumerate(args) if isinstance(x, Tensor) and x.requires_grad]
    direction = problem.field.direction
    ends = {to_float(t) for t in (*grid, *problem.times)} if grid else set()
    chain = ReversibleChain(
        problem,
        tableau,
        needed,
        record,
        sorted(ends, key=lambda t: t * direction),
        max_num_steps,
        options,
        throw,
    )
    ts = problem.t if problem.t.requires_grad else None
    inputs = Inputs(problem.y0, ts, None, tuple(args[i] for i in needed), params)
    if recorded((problem.y0, problem.t), args, params) and not transformed():
        return chain.rewrite(solve_in_one_node(chain, inputs)).solution()
    return chain.rewrite(chain.run(inputs)[0]).solution()


@dataclass(frozen=True, eq=False)
class _Noted:
    """A stepper whose steps a chain takes note of."""

    stepper: Any
    chain: ReversibleChain

    def advance(self) -> Any:
        step = self.stepper.advance()
        self.chain.note(step)
        return step

    @property
    def rejected(self) -> int:
        return self.stepper.rejected
