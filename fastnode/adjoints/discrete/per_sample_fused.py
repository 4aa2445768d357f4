"""Gradients of per-sample solves of perceptrons, by the fused engine itself.

It keeps the state and the first stage derivative of each accepted step of each sample, and follows
the steps backwards in tiles as it took them (csrc/mlp/cpu/adjoint_per_sample.h). A gradient that is
to have gradients is made by torch, batch by batch of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastnode.adjoints.discrete.autograd_node import Cotangents, Inputs, solve_in_one_node
from fastnode.adjoints.discrete.per_sample import SampleChain, batch_steps
from fastnode.control.request import SolveRequest
from fastnode.engines import select
from fastnode.engines.fused import per_sample as per_sample_fused
from fastnode.engines.fused.double_backward import PerceptronField
from fastnode.engines.fused.generated import GeneratedField
from fastnode.engines.fused.mlp import FIRST_GENERATED, NativeField, tensors
from fastnode.engines.per_sample_trace import Trace
from fastnode.problem.batch import SampleField, SampleLayout, SampleProblem
from fastnode.torch_support.grad_mode import recorded

#: Those whose gradients the engine makes itself.
FUSED_ADJOINTS = ("backprop", "checkpoint")


class FusedChain(SampleChain):
    """The steps of a solve that is done: its trace, and what was kept of it. ``Inputs.params`` are
    the tensors of the layers."""

    def __init__(
        self,
        problem: SampleProblem,
        request: SolveRequest,
        found: NativeField,
        trace: Trace,
        kept: Tensor,
    ):
        super().__init__(problem, request, ())
        layers, self.number = found
        self.columns: list[int] = []
        self.biased: list[bool] = []
        if self.number < FIRST_GENERATED:
            self.columns = [column for _, _, column in layers]
            self.biased = [bias is not None for _, bias, _ in layers]
        self.steps = (trace.accepted, trace.t1)
        self.trace, self.kept = trace, kept

    def run(self, inputs: Inputs) -> tuple[list[Tensor], list[Tensor]]:
        assert self.trace is not None
        ys, kept = self.trace.ys, self.kept
        # The node's own from here on.
        del self.kept
        return [ys], [kept]

    def recompute(self, inputs: Inputs) -> list[Tensor]:
        self.batches = batch_steps(self.problem, *self.steps)
        return super().recompute(inputs)

    def vjp(
        self, inputs: Inputs, kept: Sequence[Tensor], cotangents: Cotangents
    ) -> list[Tensor | None]:
        of_ys = cotangents[0]
        assert of_ys is not None
        found = (self._held(inputs.params), self.number)
        by_y0, by_layers = per_sample_fused.back(
            self.problem, self.tableau, found, *self.steps, kept[0], of_ys
        )
        return [by_y0, None, None, *(by_layers or [None] * len(inputs.params))]

    def _held(self, tensors: Sequence[Tensor]) -> list[Any]:
        if self.number >= FIRST_GENERATED:
            return list(tensors)
        left = iter(tensors)
        return [
            (next(left), next(left) if biased else None, column)
            for biased, column in zip(self.biased, self.columns, strict=True)
        ]

    def _problem(self, inputs: Inputs) -> SampleProblem:
        outer = self.problem
        func: Any
        if self.number < FIRST_GENERATED:
            pairs = zip(self.columns, self.biased, strict=True)
            layout = [int(x) for pair in pairs for x in pair]
            func = PerceptronField(inputs.params, layout, self.number)
        else:
            func = GeneratedField(self.number, inputs.params)
        # Both take rows, and what the caller's args hold is among the parameters.
        rows = SampleLayout((inputs.y0.shape[1:],), is_tuple=False)
        return replace(outer, field=SampleField(func, rows, inputs.y0), y0=inputs.y0, args=())


def fused_samples(problem: SampleProblem, request: SolveRequest) -> Trace | None:
    """The trace of a per-sample solve with the gradients of ``FusedChain``; None where none are
    wanted or another engine makes them."""
    if not torch.is_grad_enabled() or problem.ts.requires_grad:
        return None
    if select.choose_per_sample(problem, request, gradients=True) != "fused":
        return None
    found = per_sample_fused.find(problem, True, request.engine)
    assert found is not None
    params = tensors(found)
    if not recorded((problem.y0, *params)):
        return None
    with torch.no_grad():
        trace, kept = per_sample_fused.solve(problem, request, keep=True)
    assert kept is not None
    chain = FusedChain(problem, request, found, trace, kept)
    inputs = Inputs(problem.y0, None, None, (), tuple(params), handed=True)
    (ys,) = solve_in_one_node(chain, inputs)
    chain.trace = None
    return replace(trace, ys=ys)
