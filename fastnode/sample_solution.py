"""From the trace of a per-sample solve to its Solution."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from fastnode.engines.rows import SampleOptions, Trace, interpolate_rows
from fastnode.recording import outside_of
from fastnode.samples import RowLayout, SampleProblem
from fastnode.solution import Solution, Steps
from fastnode.tableaus import Tableau


def sample_solution(
    ts: Tensor, problem: SampleProblem, options: SampleOptions, trace: Trace
) -> Solution:
    """Sorts the steps by sample, each sample's in the order they were taken."""
    layout, count = problem.field.layout, problem.y0.shape[0]
    order = trace.sample.argsort(stable=True)
    counts = trace.accepted.tolist()
    starts = problem.ts[:, :1].unbind()

    def per_sample(column: Tensor) -> tuple[Tensor, ...]:
        return column[order].split(counts)

    times = [torch.cat([a, b]) for a, b in zip(starts, per_sample(trace.t1), strict=True)]
    states: list[Any] = [None] * count
    dense = None
    if trace.states is not None:
        first = problem.y0.split(1)
        packed = [torch.cat([a, b]) for a, b in zip(first, per_sample(trace.states), strict=True)]
        states = [layout.unpack(rows) for rows in packed]
        if trace.slopes is not None:
            dense = _Dense(
                options.tableau, layout, problem.direction, times, packed, trace.slopes[:, order]
            )
    edges = [each.detach() for each in times]
    columns = zip(edges, per_sample(trace.error), per_sample(trace.stiffness), states, strict=True)
    return Solution(
        ts=ts,
        ys=layout.unpack(trace.ys),
        status=trace.status,
        nfe=trace.nfe,
        accepted=trace.accepted,
        rejected=trace.rejected,
        steps=[Steps(*column) for column in columns],
        dense=dense,
    )


class _Dense:
    """Dense output over the steps of all samples."""

    def __init__(
        self,
        tableau: Tableau,
        layout: RowLayout,
        direction: Tensor,
        times: list[Tensor],
        states: list[Tensor],
        slopes: Tensor,
    ):
        self.tableau, self.layout, self.direction = tableau, layout, direction.tolist()
        self.times, self.slopes = [each.detach() for each in times], slopes
        # One more edge than steps: sample b's edges begin b entries later than its steps.
        self.edges, self.states = torch.cat(times), torch.cat(states)
        self.offsets = [0, *accumulate(len(each) for each in times)]

    def __call__(self, t: Tensor) -> Any:
        """At a number, [T], or [B, T] times for all or each of the samples."""
        count = len(self.times)
        if t.dim() > 2 or (t.dim() == 2 and t.shape[0] != count):
            raise ValueError(
                f"t must be a number or have shape [T] or [{count}, T], got {tuple(t.shape)}"
            )
        rows = t if t.dim() == 2 else t.reshape(1, -1).expand(count, -1)
        found = []
        for b, (edges, direction) in enumerate(zip(self.times, self.direction, strict=True)):
            mine = rows[b].detach().contiguous()
            outside_of(mine, edges[0].item(), edges[-1].item(), f"t of sample {b}")
            # The first edge at or beyond t ends its step; t0 belongs to the first, if there is one.
            place = torch.searchsorted(edges * direction, mine * direction)
            found.append(place.clamp(min=1).clamp(max=len(edges) - 1))
        sample = torch.arange(count, device=t.device).repeat(rows.shape[1])
        place = torch.stack(found, dim=1).reshape(-1)
        end = place + torch.tensor(self.offsets[:count], device=t.device)[sample]
        times, values = rows.t().reshape(-1), self.states[end]
        # At an edge only the polynomial knows the slope, for the gradient of the time.
        inside = (place > 0) & (times.requires_grad | (times != self.edges[end]))
        chosen = inside.nonzero()[:, 0]
        if chosen.numel():
            end = end[chosen]
            start, step = end - 1, end - 1 - sample[chosen]
            begin = self.edges[start]
            polynomial = interpolate_rows(
                self.tableau,
                self.states[start],
                self.slopes[:, step].unbind(),
                self.edges[end] - begin,
                times[chosen] - begin,
            )
            values = values.index_copy(0, chosen, polynomial)
        values = values.reshape(rows.shape[1], count, self.states.shape[1])
        return self.layout.unpack(values[0] if t.dim() == 0 else values)
