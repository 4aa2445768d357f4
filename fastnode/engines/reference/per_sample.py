"""Per-sample adaptive stepping in pure PyTorch: the reference for all engines, differentiable.

All running samples try a step at once, each with its step size; rejected samples keep their state.
Finished samples leave the batch as soon as they are an eighth of it or more: then at most an eighth
of the evaluations is wasted, and since the batch shrinks by that factor each time, it is copied
O(log B) times, at most 8 B rows in all. Until they leave, the field is evaluated for them at the
end of their interval only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastnode.control.controllers import FUTILE, SHORT
from fastnode.control.request import SolveRequest
from fastnode.control.stiffness import Stiffness
from fastnode.engines.failures import Failure, raise_failure
from fastnode.engines.per_sample_trace import (
    Batch,
    Trace,
    combine_rows,
    interpolate_rows,
)
from fastnode.ops.rk_rows import rk_stage_rows
from fastnode.problem.batch import SampleProblem
from fastnode.torch_support.grad_mode import followed

#: Finished samples leave once they are 1 / COMPACTION of the batch.
COMPACTION = 8


@dataclass(eq=False)
class _Log:
    """The parts of a Trace, collected step by step."""

    slots: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    steps: list[tuple[Tensor, ...]] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    derivatives: list[Tensor] = field(default_factory=list)


class PerSampleSolve:
    """One solve; ``f0`` is the field at the initial states."""

    def __init__(self, problem: SampleProblem, f0: Tensor, request: SolveRequest):
        self.problem, self.request = problem, request
        self.tableau = request.tableau
        self.stiffness = Stiffness(request.tableau)
        y0, ts = problem.y0, problem.ts
        count = y0.shape[0]
        #: Whether derivatives with respect to the times are wanted.
        self.timed = followed(ts)
        self.log = _Log()
        self.status = torch.zeros(count, dtype=torch.int8, device=y0.device)
        integers = torch.zeros(3, count, dtype=torch.int64, device=y0.device)
        self.nfe, self.accepted, self.rejected = integers.unbind()
        self.nfe += 1
        self.batch = Batch(
            index=torch.arange(count, device=y0.device),
            t=ts[:, 0],
            y=y0,
            f=f0,
            h=torch.zeros_like(problem.direction),
            end=ts[:, -1],
            ts=ts,
            direction=problem.direction,
            before=torch.ones_like(problem.direction),
            earlier=torch.ones_like(problem.direction),
            pending=torch.ones_like(self.nfe),
            attempts=torch.zeros_like(self.nfe),
            running=(ts[:, -1] != ts[:, 0]).detach(),
            longest=torch.zeros_like(problem.direction),
            blown=torch.zeros_like(self.nfe, dtype=torch.bool),
            futile=torch.zeros_like(self.nfe),
            tolerances=request.tolerances,
            args=problem.args,
        )
        self._save(torch.arange(count, device=y0.device), torch.zeros_like(self.nfe), y0)
        finite = f0.detach().isfinite().all(dim=1) & y0.detach().isfinite().all(dim=1)
        self._fail(Failure.NOT_FINITE, ~finite, [f0.detach()])

    def run(self) -> Trace:
        batch = self.batch
        if bool(batch.running.any()):
            first = self.request.first_step
            with torch.no_grad():
                size = self.initial_steps() if first is None else first + torch.zeros_like(batch.h)
            batch.h = size.clamp(self.request.controller.min_step, self.request.controller.max_step)
            self._check_progress(torch.zeros_like(batch.running), batch.h, [batch.f])
        while bool(self.batch.running.any()):
            self._compact()
            self._attempt()
        return self._trace()

    def _compact(self) -> None:
        running = self.batch.running
        finished = running.numel() - int(running.sum())
        if COMPACTION * finished >= running.numel():
            self.batch = self.batch.take(running.nonzero()[:, 0], self.problem)

    def _attempt(self) -> None:
        """A step of every running sample."""
        batch, tableau, controller = self.batch, self.tableau, self.request.controller
        room = (batch.end - batch.t).detach().abs() * batch.running
        taken = torch.minimum(batch.h, room)
        # At the end of the interval the value is that of the end and the gradient that of t: step
        # sizes are constants.
        limit = batch.end.detach() + (batch.t - batch.t.detach())
        t1 = torch.where(batch.h < room, batch.t + batch.h * batch.direction, limit)
        t1 = torch.where(batch.running, t1, batch.t)
        y1, k = self.stages(batch, t1)
        with torch.no_grad():
            weights = tableau.error_weights
            derivatives = [k[j] for j in weights.stages]
            # Constants in forward mode too, which grad mode does not end.
            ratio = batch.tolerances.norm(
                self.problem.field.layout, batch.y, y1, derivatives, weights.values, t1 - batch.t
            ).detach()
            history = (batch.before, batch.earlier)
            following = controller.next_steps(taken, ratio, history, tableau.order)
            accepted = controller.accepted(taken, ratio) & batch.running
            rejected = batch.running & ~accepted
            batch.attempts = batch.attempts + batch.running
            stuck = self._follow(taken, ratio, accepted, rejected) | (
                rejected & (following >= taken)
            )
            self.accepted[batch.index] += accepted
            self.rejected[batch.index] += rejected
        if y1.requires_grad and not bool(torch.stack([x[rejected] for x in k]).isfinite().all()):
            y1, k = self._without(rejected, t1, y1, k)
        rows = accepted.nonzero()[:, 0]
        due = self._due(accepted, t1)
        f1 = k[-1]
        k = self._further(accepted, due, t1, k)
        self._record(rows, t1, y1, k, ratio)
        self._interpolate(due, t1, y1, k)
        grown = torch.where(taken < batch.h, torch.maximum(following, batch.h), following)
        batch.h = torch.where(accepted, grown, following)
        batch.earlier = torch.where(accepted, batch.before, batch.earlier)
        batch.before = torch.where(accepted, ratio, batch.before)
        batch.t = torch.where(accepted, t1, batch.t)
        batch.y = torch.where(accepted[:, None], y1, batch.y)
        batch.f = torch.where(accepted[:, None], f1, batch.f)
        batch.running = batch.running & (batch.t.detach() != batch.end.detach())
        self._check_progress(stuck, ratio, k)

    def _follow(self, taken: Tensor, ratio: Tensor, accepted: Tensor, rejected: Tensor) -> Tensor:
        """Which samples have tried enough steps in vain (``control.controllers.FUTILE``)."""
        batch = self.batch
        batch.longest = torch.maximum(batch.longest, taken)
        short = taken <= SHORT * torch.finfo(self.problem.field.time_dtype).eps * batch.longest
        blown = rejected & ~ratio.isfinite()
        stuck = blown & (batch.futile >= FUTILE)
        counted = batch.futile + batch.blown
        batch.futile = torch.where(accepted, torch.where(short, counted, 0), batch.futile)
        batch.blown = (batch.blown | blown) & ~accepted
        return stuck

    def stages(self, batch: Batch, t1: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The state after the step and all stage derivatives."""
        h = t1 - batch.t
        k, stage = [batch.f], batch.y
        for c, weights in zip(
            self.tableau.stage_times[1:], self.tableau.stage_weights[1:], strict=True
        ):
            stage = combine_rows(batch.y, k, h, weights)
            if c == 1:
                k.append(self.problem.field(t1, stage, batch.args, batch.direction))
            else:
                k.append(self.problem.field(batch.t + c * h, stage, batch.args))
        self.nfe[batch.index] += (len(k) - 1) * batch.running
        if self.tableau.fsal:
            return stage, k
        return combine_rows(batch.y, k, h, self.tableau.solution_weights), k

    def _without(
        self, rejected: Tensor, t1: Tensor, y1: Tensor, k: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The step recomputed without the rejected samples: theirs is not finite, and zero times
        infinity would reach the gradients of the parameters as NaN."""
        rows = (~rejected).nonzero()[:, 0]
        again, derivatives = self.stages(self.batch.take(rows, self.problem), t1[rows])

        def spread(part: Tensor, like: Tensor) -> Tensor:
            return torch.zeros_like(like).index_copy(0, rows, part)

        pairs = zip(derivatives[1:], k[1:], strict=True)
        return spread(again, y1), [k[0], *(spread(part, full) for part, full in pairs)]

    def _record(self, rows: Tensor, t1: Tensor, y1: Tensor, k: list[Tensor], ratio: Tensor) -> None:
        if rows.numel() == 0:
            return
        stiffness = self.stiffness.per_sample(k)
        parts = (self.batch.index, t1, ratio, stiffness.to(ratio))
        self.log.steps.append(tuple(part[rows] for part in parts))
        if self.request.keep_states:
            self.log.states.append(y1[rows])
        if self.request.keep_derivatives:
            self.log.derivatives.append(torch.stack([x[rows] for x in k]))

    def _due(self, accepted: Tensor, t1: Tensor) -> Tensor:
        """Which of the samples' times [b, T] the accepted steps have reached."""
        batch = self.batch
        ahead = (batch.ts.detach() - t1.detach()[:, None]) * batch.direction[:, None]
        later = torch.arange(batch.ts.shape[1], device=t1.device) >= batch.pending[:, None]
        due = (ahead <= 0) & later & accepted[:, None]
        batch.pending = batch.pending + due.sum(dim=1)
        return due

    def _further(self, accepted: Tensor, due: Tensor, t1: Tensor, k: list[Tensor]) -> list[Tensor]:
        """The stage derivatives, with the further ones of dense output where it is needed."""
        batch = self.batch
        if not self.tableau.further:
            return k
        inside = due if self.timed else due & (batch.ts != t1.detach()[:, None])
        rows = (accepted if self.request.keep_derivatives else inside.any(dim=1)).nonzero()[:, 0]
        some, derivatives = batch.take(rows, self.problem), [x[rows] for x in k]
        h = (t1 - batch.t)[rows]
        for c, weights in self.tableau.further_stages if rows.numel() else ():
            y = combine_rows(some.y, derivatives, h, weights)
            derivatives.append(self.problem.field(some.t + c * h, y, some.args))
            self.nfe[some.index] += 1
            k = [*k, torch.zeros_like(k[0]).index_copy(0, rows, derivatives[-1])]
        return k

    def _interpolate(self, due: Tensor, t1: Tensor, y1: Tensor, k: Sequence[Tensor]) -> None:
        batch = self.batch
        rows, columns = due.nonzero().unbind(dim=1)
        if rows.numel() == 0:
            return
        times, start, end = batch.ts[rows, columns], batch.t[rows], t1[rows]
        values = y1[rows]
        # At the end of a step only the polynomial has a derivative, for the gradient of the time.
        if self.timed or bool((times != end).any()):
            derivatives = [x[rows] for x in k]
            inside = interpolate_rows(
                self.tableau, batch.y[rows], derivatives, end - start, times - start
            )
            at_end = (times == end) & (not self.timed)
            values = torch.where(at_end[:, None], values, inside)
        self._save(batch.index[rows], columns, values)

    def _save(self, samples: Tensor, columns: Tensor, values: Tensor) -> None:
        self.log.slots.append(columns * self.problem.y0.shape[0] + samples)
        self.log.values.append(values)

    def initial_steps(self) -> Tensor:
        """``controllers.initial_step`` for each sample."""
        batch, order, layout = self.batch, self.tableau.order, self.problem.field.layout
        span = (batch.end - batch.t).abs()

        def size(x: Tensor) -> Tensor:
            one = torch.ones_like(span)
            return batch.tolerances.norm(layout, batch.y, batch.y, [x], [1.0], one)

        d0, d1 = size(batch.y), size(batch.f)
        h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1)
        h0 = torch.minimum(h0, span) * batch.running
        signed = h0 * batch.direction
        y = rk_stage_rows(batch.y, [batch.f], [1.0], signed)
        trial = self.problem.field(batch.t + signed, y, batch.args)
        self.nfe[batch.index] += batch.running
        d2 = size(trial - batch.f) / h0
        flat = (d1 <= 1e-15) & (d2 <= 1e-15)
        h1 = (0.01 / torch.maximum(d1, d2)) ** (1 / order)
        h1 = torch.where(flat, (h0 * 1e-3).clamp(min=1e-6), h1)
        return torch.where(d2.isfinite(), torch.minimum(100 * h0, h1), h0).detach()

    def _check_progress(self, stuck: Tensor, ratio: Tensor, k: Sequence[Tensor]) -> None:
        """Fails the samples that cannot try a step of size h."""
        batch = self.batch
        t = batch.t.detach()
        held = batch.running & (stuck | (t + batch.h * batch.direction == t))
        self._fail(Failure.NOT_FINITE, held & ~ratio.isfinite(), k)
        self._fail(Failure.UNDERFLOW, held & ratio.isfinite(), k)
        out = batch.running & (batch.attempts >= self.request.max_num_steps)
        self._fail(Failure.TOO_MANY_STEPS, out, k)

    def _fail(self, failure: Failure, which: Tensor, k: Sequence[Tensor]) -> None:
        if not bool(which.any()):
            return
        batch = self.batch
        rows = which.nonzero()[:, 0]
        if self.request.throw:
            samples = batch.index[rows].tolist()
            steps = (batch.h * batch.direction)[rows].tolist()
            times = batch.t.detach()[rows].tolist()
            derivatives = [x.detach()[rows] for x in k]
            raise_failure(failure, samples, times, steps, derivatives, self.request.max_num_steps)
        self.status[batch.index[rows]] = failure
        batch.running = batch.running & ~which

    def _trace(self) -> Trace:
        log, y0 = self.log, self.problem.y0
        count, width = self.problem.ts.shape[1] * y0.shape[0], y0.shape[1]
        slots = torch.cat(log.slots)
        # Each output is written once; those of samples that failed index a row of NaN.
        place = torch.full((count,), slots.numel(), device=y0.device)
        place[slots] = torch.arange(slots.numel(), device=y0.device)
        values = torch.cat([*log.values, torch.full_like(y0[:1], math.nan)])
        ys = values[place].reshape(self.problem.ts.shape[1], y0.shape[0], width)
        empty = (place[:0], *(self.problem.direction[:0],) * 3)
        sample, *columns = map(torch.cat, zip(empty, *log.steps, strict=True))
        order = sample.argsort(stable=True)
        stages = len(self.tableau.a) + len(self.tableau.further)
        none = y0.new_empty(stages, 0, width)
        keep = self.request
        return Trace(
            ys,
            self.nfe,
            self.accepted,
            self.rejected,
            self.status,
            *(column[order] for column in columns),
            states=torch.cat([y0[:0], *log.states])[order] if keep.keep_states else None,
            derivatives=torch.cat([none, *log.derivatives], dim=1)[:, order]
            if keep.keep_derivatives
            else None,
        )
