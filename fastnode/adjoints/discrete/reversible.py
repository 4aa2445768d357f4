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

import torch
from torch import Tensor

from fastnode.adjoints.discrete.autograd_node import (
    Cotangents,
    Inputs,
    NotifyingStepper,
    solve_in_one_node,
    with_args,
)
from fastnode.adjoints.discrete.step_transpose import (
    Before,
    Gradients,
    Scheme,
    StepStart,
    derivatives_of,
    no_call,
    seeded,
    transpose,
)
from fastnode.control.norms import ErrorNorm
from fastnode.control.options import Stop
from fastnode.control.request import SolveRequest
from fastnode.engines.reference.adaptive import AdaptiveStepper
from fastnode.engines.reference.fixed import GridStepper
from fastnode.engines.reference.step import Step
from fastnode.ops.dispatch import transformed
from fastnode.ops.rk_stage import rk_stage
from fastnode.problem.ivp import Problem, Time, VectorField, to_float
from fastnode.recording.joint import Recording
from fastnode.solution import Solution
from fastnode.torch_support.grad_mode import followed, recorded
from fastnode.torch_support.recompute import ReplayableField, Surroundings

#: L. The nearer to 1, the less do errors grow in the backward pass.
COUPLING = 0.999


def increment(
    field: VectorField, scheme: Scheme, start: StepStart, base: Tensor, before: Before = no_call
) -> tuple[Tensor, dict[int, Tensor]]:
    """base + Psi, and the derivatives."""
    stages, weights = scheme.output(start.t, start.t1, None)
    k = derivatives_of(field, scheme, start, stages, before)
    return rk_stage(base, [k[i] for i in stages], weights), k


def mixed(y: Tensor, z: Tensor) -> Tensor:
    """L y + (1 - L) z."""
    return z + COUPLING * (y - z)


def partner(
    field: VectorField,
    scheme: Scheme,
    n: int,
    t: Time,
    t1: Time,
    y1: Tensor,
    z: Tensor,
    before: Before = no_call,
) -> Tensor:
    """z_{n+1} = z_n - Psi_{-h}(t_{n+1}, y_{n+1})."""
    stages, weights = scheme.output(t1, t, None)
    k = derivatives_of(field, scheme, StepStart(n, t1, t, y1), stages, before)
    return rk_stage(z, [k[i] for i in stages], [-w for w in weights])


class Partner:
    """z, brought to the end of the last step when it is next asked for: by then the derivatives of
    that
    step are free."""

    def __init__(self, scheme: Scheme, y: Tensor):
        self.scheme, self._z = scheme, y
        self._due: tuple[VectorField, Time, Time, Tensor] | None = None

    def move(self, field: VectorField, t: Time, t1: Time, y1: Tensor) -> None:
        self._due = field, t, t1, y1

    def z(self) -> Tensor:
        if self._due is not None:
            field, t, t1, y1 = self._due
            self._due = None
            self._z = partner(field, self.scheme, 0, t, t1, y1, self._z)
        return self._z


class ReversibleStepper(AdaptiveStepper):
    """Steps whose sizes are chosen by the error of Psi_h(t_n, z_n)."""

    def __init__(self, partner: Partner, field: VectorField, t: Time, y: Tensor, **options: Any):
        self.partner, self._begun = partner, False
        super().__init__(field, partner.scheme.tableau, t, y, **options)

    def _try(self, t1: Time) -> Step:
        z, scheme = self.partner.z(), self.partner.scheme
        if self._begun:
            self.f, self._begun = self.field(self.t, z), False
        start = StepStart(0, self.t, t1, z, self.f)
        k = derivatives_of(self.field, scheme, start, range(scheme.last + 1))
        stages, weights = scheme.output(self.t, t1, None)
        y1 = rk_stage(mixed(self.y, z), [k[i] for i in stages], weights)
        return Step(self.field, self.tableau, self.t, t1, self.y, y1, list(k.values()))

    def _next_derivative(self, accepted: Step) -> Tensor:
        # That at z, once it is there.
        self.partner.move(self.field, accepted.t, accepted.t1, accepted.y1)
        self._begun = True
        return accepted.k[-1]


class ReversibleSteps:
    """A StepFunction, for steps one after the other."""

    def __init__(self, partner: Partner):
        self.partner = partner

    def __call__(self, field: VectorField, t: Time, t1: Time, y: Tensor, perturb: bool) -> Step:
        z, scheme = self.partner.z(), self.partner.scheme
        y1, k = increment(field, scheme, StepStart(0, t, t1, z), mixed(y, z))
        self.partner.move(field, t, t1, y1)
        return Step(field, scheme.tableau, t, t1, y, y1, list(k.values()))


class ReversibleChain:
    """One solve by two states; the arguments are those of checkpoint.StepChain.

    Args:
        grid: where fixed steps begin and end, output times included; empty for an adaptive method.
    """

    def __init__(
        self,
        problem: Problem,
        request: SolveRequest,
        needed: Sequence[int],
        record: Callable[[Problem], Recording],
        grid: Sequence[float],
    ):
        self.problem, self.needed, self.record = problem, needed, record
        self.request, tableau = request, request.tableau
        # Stages are evaluated where the step takes them, in either direction of time.
        self.scheme = Scheme(tableau, "cubic", perturb=False)
        self.grid = list(grid)
        device = problem.field.device
        self.observed = ReplayableField(problem.field.func, problem.y0, frugal=True)
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
        problem, request = self.problem, self.request
        inner = problem.with_(field=self.field(inputs), y0=inputs.y0, t=problem.t.detach())
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
                    self.request.max_num_steps,
                )
                return NotifyingStepper(GridStepper(*grid), lambda: None, self.note)
            adaptive = ReversibleStepper(
                partner,
                inner.field,
                times[0],
                inner.y0,
                end=times[-1],
                stops=[Stop(t) for t in times[1:-1]],
                max_num_steps=request.max_num_steps,
                controller=request.controller,
                first_step=request.first_step,
                norm=ErrorNorm(problem.layout, problem.y0, request.rtol, request.atol),
            )
            return NotifyingStepper(adaptive, lambda: None, self.note)

        with self.surroundings.forward():
            recording.run(make, request.throw)
            z = partner.z()
        outputs = [recording.outputs[j] for j in range(1, len(recording.within) + 1)]
        for slot, n in enumerate(recording.within):
            self.outputs.setdefault(n, []).append(slot)
        for n in range(len(recording.states) - 1):
            self.outputs.setdefault(n, []).append(len(outputs) + n)
        outputs += recording.states[1:]
        y, self._last_state = self._last_state, None
        return outputs, [] if y is None else [y, z]

    def recompute(self, inputs: Inputs) -> list[Tensor]:
        field, edges = self.field(inputs), self.times(inputs.ts)
        y = z = inputs.y0
        found: dict[int, Tensor] = {}
        for n, (t, t1) in enumerate(pairwise(edges)):
            y, z = self.take(field, n, t, t1, y, z)
            found.update((slot, y) for slot in self.outputs.get(n, ()))
        return [found[slot] for slot in range(len(found))]

    def vjp(
        self, inputs: Inputs, kept: Sequence[Tensor], cotangents: Cotangents
    ) -> list[Tensor | None]:
        return ReversibleBackwardPass(self, inputs, cotangents).run(kept)

    def take(
        self, field: VectorField, n: int, t: Time, t1: Time, y: Tensor, z: Tensor
    ) -> tuple[Tensor, Tensor]:
        there, back = self.before(n)
        y1, _ = increment(field, self.scheme, StepStart(n, t, t1, z), mixed(y, z), there)
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
            return no_call, no_call
        count, back = len(self.stages), self.evaluations[n]
        # In an adaptive solve the derivative at which a step begins is evaluated once for all
        # attempts.
        second = back - count if self.grid else back - self.scheme.last - 1
        first = second if self.grid else self.evaluations[n - 1] + count if n else 0

        def there(stage: int) -> None:
            position = self.stages.index(stage) if self.grid else stage
            self.observed.replay(second + position if stage else first)

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
    request: SolveRequest,
    params: tuple[Tensor, ...],
    record: Callable[[Problem], Recording],
    grid: Sequence[Time],
) -> Solution:
    """The solution by the reversible form of a method, with its gradients.

    Args:
        grid: where fixed steps begin and end; empty for a method that chooses its steps.
    """
    args = problem.args
    needed = [i for i, x in enumerate(args) if isinstance(x, Tensor) and x.requires_grad]
    direction = problem.field.direction
    ends = {to_float(t) for t in (*grid, *problem.times)} if grid else set()
    chain = ReversibleChain(
        problem, request, needed, record, sorted(ends, key=lambda t: t * direction)
    )
    ts = problem.t if followed(problem.t) else None
    inputs = Inputs(problem.y0, ts, None, tuple(args[i] for i in needed), params)
    if recorded((problem.y0, problem.t), args, params) and not transformed():
        return chain.rewrite(solve_in_one_node(chain, inputs)).solution()
    outputs = chain.run(inputs)[0]
    if ts is not None:
        # The loop takes times as numbers: a transform sees them in the same steps once more.
        with chain.surroundings.recomputation(bool(chain.observed.draws)):
            outputs = chain.recompute(inputs)
    return chain.rewrite(outputs).solution()


@dataclass(eq=False)
class _Point:
    """The two states and their cotangents."""

    y: Tensor
    z: Tensor
    by_y: Tensor
    by_z: Tensor


class ReversibleBackwardPass:
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

        Of the size of a state at once: the point (4), the derivatives of the stages before the one
        that is differentiated and the products of those behind it (as many as the method has
        stages), that stage's state and its cotangent. With the two states at the end and the values
        and cotangents at two output times that is 18 for dopri5, 36 of the 50 MB that states of 2
        MiB take at most; the others are the field's own.
        """
        chain, field, sums = self.chain, self.field, self.sums
        t, t1 = chain.edges[n : n + 2]
        there, back = chain.before(n)
        start = StepStart(n, t1, t, at.y)
        with torch.no_grad():
            at.z, k = increment(field, chain.scheme, start, at.z, back)
        terms = seeded(chain.scheme, start, [(None, at.by_z)], sign=-1.0)
        by_y, _ = transpose(field, chain.scheme, start, terms, [at.by_y], sums, back, k)
        assert by_y is not None
        at.by_y = by_y
        start = StepStart(n, t, t1, at.z)
        with torch.no_grad():
            stages, weights = chain.scheme.output(t, t1, None)
            k = derivatives_of(field, chain.scheme, start, stages, there)
            rest = rk_stage(at.y - at.z, [k[i] for i in stages], [-w for w in weights])
            at.y = rest.div_(COUPLING).add_(at.z)
            del rest
        terms = seeded(chain.scheme, start, [(None, by_y)])
        at.by_z = torch.add(at.by_z, by_y, alpha=1 - COUPLING)
        by_z, _ = transpose(field, chain.scheme, start, terms, [at.by_z], sums, there, k)
        assert by_z is not None
        by_y.mul_(COUPLING)
        at.by_z = by_z

    def _undo_with_times(self, n: int, at: _Point) -> None:
        """The same by one call of autograd, for times that need gradients too."""
        chain, field, sums = self.chain, self.field, self.sums
        t, t1 = chain.edges[n : n + 2]
        there, back = chain.before(n)
        with torch.no_grad():
            at.z, _ = increment(field, chain.scheme, StepStart(n, t1, t, at.y), at.z, back)
            start = StepStart(n, t, t1, at.z)
            step, _ = increment(field, chain.scheme, start, torch.zeros_like(at.z), there)
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
