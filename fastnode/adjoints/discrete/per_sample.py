"""checkpoint.py for per-sample stepping.

The backward pass recomputes the steps in batches: batch w holds step w of each sample that took
more than w steps, whatever the times of these steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastnode.adjoints.discrete.autograd_node import Cotangents, Inputs, State, solve_in_one_node
from fastnode.adjoints.discrete.revolve import reverse
from fastnode.adjoints.discrete.step_transpose import Gradients
from fastnode.control.request import SolveRequest
from fastnode.engines import select
from fastnode.engines.per_sample_trace import Trace, combine_rows, interpolate_rows
from fastnode.problem.batch import SampleField, SampleProblem
from fastnode.torch_support.recompute import ReplayableField, Surroundings


@dataclass(eq=False)
class StepBatch:
    """Step w of the samples ``rows``, in the order of ``rows``.

    ``steps`` says which steps of the trace these are; output i of ``inner`` and ``columns`` is that
    of sample rows[inner[i]] at its time columns[i].
    """

    w: int
    rows: Tensor
    steps: Tensor
    t: Tensor
    t1: Tensor
    inner: Tensor
    columns: Tensor


def batch_steps(problem: SampleProblem, accepted: Tensor, step_ends: Tensor) -> list[StepBatch]:
    """Sorts steps and output times by sample and by number; steps are those of a trace."""
    ts, direction = problem.ts.detach(), problem.direction
    counts = accepted.to(ts.device)
    first, start = counts.cumsum(0) - counts, ts[:, 0]
    ends = step_ends.detach().to(ts)
    # Which step each time lies in: the first whose end is at it or beyond.
    batches: list[StepBatch] = []
    pending = torch.ones_like(ts, dtype=torch.bool)
    pending[:, 0] = False
    for w in range(int(counts.max()) if counts.numel() else 0):
        rows = (counts > w).nonzero()[:, 0]
        steps = first[rows] + w
        t1 = ends[steps]
        due = pending[rows] & ((ts[rows] - t1[:, None]) * direction[rows, None] <= 0)
        inner, columns = due.nonzero().unbind(dim=1)
        pending[rows[inner], columns] = False
        batches.append(StepBatch(w, rows, steps, start[rows], t1, inner, columns))
        start = start.clone()
        start[rows] = t1
    return batches


class SampleChain:
    """The steps of one per-sample solve.

    Args:
        problem: the caller's.
        request: how it is solved; its slots are the states that the backward pass keeps, None for
            those of all batches.
        needed: positions among args of those that need a gradient.
    """

    def __init__(
        self,
        problem: SampleProblem,
        request: SolveRequest,
        needed: Sequence[int],
    ):
        self.problem, self.request = problem, request
        self.slots, self.needed = request.slots, needed
        self.tableau = request.tableau
        self.carries = not self.tableau.fsal
        device = problem.y0.device
        self.observed = ReplayableField(problem.field.func, problem.y0)
        self.surroundings = Surroundings(problem.field.func, device)
        self.trace: Trace | None = None
        self.batches: list[StepBatch] = []

    def run(self, inputs: Inputs) -> tuple[list[Tensor], list[Tensor]]:
        keeps, request = self.slots is None, self.request
        save = request.save
        if keeps and self.carries:
            save = "dense"
        elif keeps and save == "times":
            save = "steps"
        inner = replace(self._problem(inputs), ts=self.problem.ts.detach())
        with self.surroundings.forward():
            trace = self.trace = select.solve_per_sample(inner, request.with_(save=save))
        if self.observed.draws:
            raise ValueError(
                "func draws random numbers, which a per-sample solve cannot draw again for each "
                "sample; use adjoint='backprop'"
            )
        self.batches = batch_steps(self.problem, trace.accepted, trace.t1)
        # Outputs are tensors of their own: the trace keeps those that nobody differentiates.
        outputs = [trace.ys]
        if self.request.keep_states and trace.states is not None:
            outputs.append(trace.states)
        if self.request.keep_derivatives and trace.derivatives is not None:
            outputs.append(trace.derivatives)
        kept = []
        for before, batch in zip(self.batches, self.batches[1:], strict=False) if keeps else ():
            assert trace.states is not None
            going_on = torch.isin(before.rows, batch.rows)
            kept.append(trace.states[before.steps[going_on]])
            if self.carries:
                assert trace.derivatives is not None
                kept.append(trace.derivatives[0, batch.steps])
        return outputs, kept

    def recompute(self, inputs: Inputs) -> list[Tensor]:
        problem = self._problem(inputs)
        state = self._initial(problem)
        slots, values = [torch.arange(len(inputs.y0), device=inputs.y0.device)], [inputs.y0]
        steps, states, derivatives = [], [], []
        for batch in self.batches:
            y1, inside, k = self._take(problem, batch, state, inputs.ts)
            slots.append(batch.columns * len(inputs.y0) + batch.rows[batch.inner])
            values.append(inside)
            steps.append(batch.steps)
            states.append(y1)
            derivatives.append(torch.stack(k))
            state = self._next(batch, y1, k)
        ys = torch.full_like(self.problem.y0.expand(self._shape), torch.nan).flatten(0, 1)
        outputs = [ys.index_copy(0, torch.cat(slots), torch.cat(values)).reshape(self._shape)]
        order = torch.cat(steps).argsort() if steps else slots[0][:0]
        if self.request.keep_states:
            outputs.append(torch.cat(states)[order] if states else inputs.y0[:0])
        if self.request.keep_derivatives:
            stages = len(self.tableau.a) + len(self.tableau.further)
            none = inputs.y0.new_empty(stages, 0, inputs.y0.shape[1])
            outputs.append(torch.cat([none, *derivatives], dim=1)[:, order])
        return outputs

    def vjp(
        self, inputs: Inputs, kept: Sequence[Tensor], cotangents: Cotangents
    ) -> list[Tensor | None]:
        for x in inputs.args:
            x.requires_grad_()
        problem = self._problem(inputs)
        sums = Gradients([*inputs.args, *inputs.params])
        by_time = None if inputs.ts is None else torch.zeros_like(inputs.ts)
        upstream = [torch.zeros_like(inputs.y0) for _ in range(2 if self.carries else 1)]
        width = len(upstream)
        with torch.no_grad():
            states: dict[int, State] = {0: self._initial(problem)}
        for w in range(1, len(self.batches)) if kept else ():
            states[w] = tuple(x.detach() for x in kept[(w - 1) * width : w * width])

        def advance(m: int, n: int, state: State) -> State:
            with torch.no_grad():
                for batch in self.batches[m:n]:
                    y1, _, k = self._take(problem, batch, state, None)
                    state = self._next(batch, y1, k)
            return state

        def vjp(w: int, state: State) -> None:
            self._vjp(problem, self.batches[w], state, cotangents, upstream, sums, by_time)

        reverse(states, len(self.batches), self.slots, advance, vjp)
        by_y0 = upstream[0]
        if cotangents[0] is not None:
            by_y0 = by_y0 + cotangents[0][0]
        if self.carries and self.batches:
            by_y0 = by_y0 + self._through_first_derivative(inputs, upstream[1], sums, by_time)
        return [by_y0, by_time, None, *sums.sums]

    def _vjp(
        self,
        problem: SampleProblem,
        batch: StepBatch,
        state: State,
        cotangents: Cotangents,
        upstream: list[Tensor],
        sums: Gradients,
        by_time: Tensor | None,
    ) -> None:
        """From the cotangents of the states after a batch to those before it, in place."""
        leaves = [x.detach().requires_grad_() for x in state]
        ts = None if by_time is None else self.problem.ts.detach().requires_grad_()
        with torch.enable_grad():
            y1, inside, k = self._take(problem, batch, tuple(leaves), ts)
        by_ys, *others = cotangents
        pairs: list[tuple[Tensor, Tensor]] = [(y1, upstream[0][batch.rows])]
        if self.carries:
            last = len(self.tableau.a) - 1
            pairs.append((k[last], upstream[1][batch.rows]))
        if by_ys is not None and batch.inner.numel():
            pairs.append((inside, by_ys[batch.columns, batch.rows[batch.inner]]))
        if self.request.keep_states:
            g, *others = others
            if g is not None:
                pairs.append((y1, g[batch.steps]))
        if self.request.keep_derivatives and others[0] is not None:
            pairs += zip(k, others[0][:, batch.steps].unbind(), strict=True)
        pairs = [(x, g) for x, g in pairs if x.requires_grad]
        sources = [*leaves, *([] if ts is None else [ts])]
        found = torch.autograd.grad(
            [x for x, _ in pairs],
            [*sources, *sums.wanted],
            [g for _, g in pairs],
            allow_unused=True,
        )
        for into, g in zip(upstream, found, strict=False):
            into[batch.rows] = 0 if g is None else g
        if by_time is not None and found[len(leaves)] is not None:
            by_time += found[len(leaves)]
        sums.add(found[len(sources) :])

    def _through_first_derivative(
        self, inputs: Inputs, cotangent: Tensor, sums: Gradients, by_time: Tensor | None
    ) -> Tensor:
        leaves, again = inputs.with_leaves()
        with torch.enable_grad():
            rows, f0 = self.batches[0].rows, self._initial(self._problem(again))[1]
        if not f0.requires_grad:
            return torch.zeros_like(inputs.y0)
        found = torch.autograd.grad(f0, [*leaves, *sums.wanted], cotangent[rows], allow_unused=True)
        if by_time is not None and found[1] is not None:
            by_time += found[1]
        sums.add(found[len(leaves) :])
        return torch.zeros_like(inputs.y0) if found[0] is None else found[0]

    def _take(
        self, problem: SampleProblem, batch: StepBatch, state: State, ts: Tensor | None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The states at the end of a batch and at the times inside it, and all derivatives."""
        rows, tableau, field = batch.rows, self.tableau, problem.field
        args = problem.take_args(problem.args, rows)
        y, before = state[0], problem.direction[rows]
        shift = 0.0 if ts is None else (ts[:, 0] - ts[:, 0].detach())[rows]
        t, t1 = batch.t + shift, batch.t1 + shift
        h = t1 - t
        first = state[1] if self.carries else field(t, y, args, before if batch.w else None)
        k, stage = [first], y
        for c, weights in zip(tableau.stage_times[1:], tableau.stage_weights[1:], strict=True):
            stage = combine_rows(y, k, h, weights)
            k.append(field(t1, stage, args, before) if c == 1 else field(t + c * h, stage, args))
        y1 = stage if tableau.fsal else combine_rows(y, k, h, tableau.solution_weights)
        if self.request.keep_derivatives or batch.inner.numel():
            for c, weights in tableau.further_stages:
                k.append(field(t + c * h, combine_rows(y, k, h, weights), args))
        inner = batch.inner
        if not inner.numel():
            return y1, y1[:0], k
        times = (self.problem.ts.detach() if ts is None else ts)[rows[inner], batch.columns]
        inside = interpolate_rows(
            tableau, y[inner], [x[inner] for x in k], h[inner], times - t[inner]
        )
        if ts is None:
            inside = torch.where((times == t1[inner])[:, None], y1[inner], inside)
        return y1, inside, k

    def _next(self, batch: StepBatch, y1: Tensor, k: list[Tensor]) -> State:
        """What the next batch begins with."""
        if batch.w + 1 == len(self.batches):
            return ()
        going_on = torch.isin(batch.rows, self.batches[batch.w + 1].rows)
        carried = [k[len(self.tableau.a) - 1]] if self.carries else []
        return tuple(x[going_on] for x in (y1, *carried))

    def _initial(self, problem: SampleProblem) -> State:
        if not self.batches:
            return ()
        rows = self.batches[0].rows
        y = problem.y0[rows]
        if not self.carries:
            return (y,)
        args = problem.take_args(problem.args, rows)
        return y, problem.field(problem.ts[rows, 0], y, args)

    @property
    def _shape(self) -> tuple[int, ...]:
        return (self.problem.ts.shape[1], *self.problem.y0.shape)

    def _problem(self, inputs: Inputs) -> SampleProblem:
        outer = self.problem
        args = list(outer.args)
        for i, x in zip(self.needed, inputs.args, strict=True):
            args[i] = x
        given = outer.field
        field = SampleField(self.observed, given.layout, inputs.y0, given.warn_of_cast)
        ts = outer.ts.detach() if inputs.ts is None else inputs.ts
        return replace(outer, field=field, y0=inputs.y0, ts=ts, args=tuple(args))


def checkpoint_samples(
    problem: SampleProblem,
    request: SolveRequest,
    params: tuple[Tensor, ...],
) -> Trace:
    """The trace of a per-sample solve, its tensors with the gradients of ``SampleChain``."""
    args: tuple[Any, ...] = problem.args
    needed = [i for i, x in enumerate(args) if isinstance(x, Tensor) and x.requires_grad]
    chain = SampleChain(problem, request, needed)
    ts = problem.ts if problem.ts.requires_grad else None
    inputs = Inputs(problem.y0, ts, None, tuple(args[i] for i in needed), params)
    ys, *kept = solve_in_one_node(chain, inputs)
    trace, chain.trace = chain.trace, None
    assert trace is not None
    states = kept.pop(0) if request.keep_states else None
    derivatives = kept.pop(0) if request.keep_derivatives else None
    t1 = trace.t1
    if ts is not None:
        # Steps begin and end at fixed distances from the start.
        start = ts[:, 0].repeat_interleave(trace.accepted)
        t1 = t1 + (start - start.detach())
    return replace(trace, ys=ys, t1=t1, states=states, derivatives=derivatives)
