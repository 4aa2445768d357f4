"""From the trace of a per-sample solve to its Solution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastnode.control.request import SolveRequest
from fastnode.engines.failures import statuses
from fastnode.engines.per_sample_trace import Trace, interpolate_rows
from fastnode.problem.batch import SampleProblem
from fastnode.recording.joint import check_inside
from fastnode.solution import Solution, Steps
from fastnode.tableaus import Tableau
from fastnode.torch_support.grad_mode import followed


def sample_solution(
    ts: Tensor, problem: SampleProblem, request: SolveRequest, trace: Trace
) -> Solution:
    layout, count = problem.field.layout, problem.y0.shape[0]
    samples = torch.arange(count, device=trace.accepted.device)
    # Of n steps n + 1 edges: those of sample b begin b entries later than its steps.
    offsets = trace.accepted.cumsum(0) - trace.accepted + samples
    is_end = torch.ones(count + len(trace.t1), dtype=torch.bool, device=samples.device)
    is_end[offsets] = False
    edge_of_step = is_end.nonzero()[:, 0]
    counts = trace.accepted.tolist()
    edge_counts = [each + 1 for each in counts]

    def with_starts(starts: Tensor, ends: Tensor) -> Tensor:
        """The values at all edges, from those at the start and at the end of each step."""
        values = starts.new_zeros(len(is_end), *starts.shape[1:])
        return values.index_copy(0, offsets, starts).index_copy(0, edge_of_step, ends)

    edges = with_starts(problem.ts[:, 0], trace.t1)
    states: list[Any] = [None] * count
    dense = None
    if trace.states is not None:
        rows = with_starts(problem.y0, trace.states)
        states = [layout.unpack(each) for each in rows.split(edge_counts)]
        if trace.derivatives is not None:
            dense = _Dense(
                request.tableau, problem, edges, edge_counts, offsets, rows, trace.derivatives
            )
    columns = zip(
        edges.detach().split(edge_counts),
        trace.error.split(counts),
        trace.stiffness.split(counts),
        states,
        strict=True,
    )
    return Solution(
        ts=ts,
        ys=layout.unpack(trace.ys),
        status=statuses(trace.status),
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
        problem: SampleProblem,
        edges: Tensor,
        edge_counts: list[int],
        offsets: Tensor,
        states: Tensor,
        derivatives: Tensor,
    ):
        self.tableau, self.layout = tableau, problem.field.layout
        self.direction = problem.direction.tolist()
        self.times = edges.detach().split(edge_counts)
        self.edges, self.offsets, self.states, self.derivatives = (
            edges,
            offsets,
            states,
            derivatives,
        )

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
            check_inside(mine, edges[0].item(), edges[-1].item(), f"t of sample {b}")
            # The first edge at or beyond t ends its step; t0 belongs to the first, if there is one.
            place = torch.searchsorted(edges * direction, mine * direction)
            found.append(place.clamp(min=1).clamp(max=len(edges) - 1))
        sample = torch.arange(count, device=t.device).repeat(rows.shape[1])
        place = torch.stack(found, dim=1).reshape(-1)
        end = place + self.offsets[sample]
        times, values = rows.t().reshape(-1), self.states[end]
        # At an edge only the polynomial has a derivative, for the gradient of the time.
        inside = (place > 0) & (followed(times) | (times != self.edges[end]))
        chosen = inside.nonzero()[:, 0]
        if chosen.numel():
            end = end[chosen]
            start, step = end - 1, end - 1 - sample[chosen]
            begin = self.edges[start]
            polynomial = interpolate_rows(
                self.tableau,
                self.states[start],
                self.derivatives[:, step].unbind(),
                self.edges[end] - begin,
                times[chosen] - begin,
            )
            values = values.index_copy(0, chosen, polynomial)
        values = values.reshape(rows.shape[1], count, self.states.shape[1])
        return self.layout.unpack(values[0] if t.dim() == 0 else values)
