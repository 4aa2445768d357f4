"""Gradients of per-sample solves of perceptrons, by the fused engine itself.

It keeps the state and the slope at which each accepted step of each sample begins, and follows the
steps backwards in tiles as it took them (csrc/mlp/cpu/adjoint_per_sample.cpp). A gradient that is
to have gradients is made by torch, wave by wave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fastnode.adjoints.discrete.autograd_node import Cotangents, Inputs, solve_in_one_node
from fastnode.adjoints.discrete.per_sample import SampleChain, find_waves
from fastnode.engines.fused import per_sample as per_sample_fused
from fastnode.engines.fused.double_backward import PerceptronField
from fastnode.engines.fused.mlp import Layers, Perceptron
from fastnode.engines.per_sample_trace import SampleOptions, Trace
from fastnode.problem.batch import SampleField, SampleProblem
from fastnode.torch_support.grad_mode import recorded


class FusedChain(SampleChain):
    """The steps of a solve that is done: its trace, and what was kept of it. ``Inputs.params`` are
    the tensors of the layers."""

    def __init__(
        self,
        problem: SampleProblem,
        options: SampleOptions,
        found: Perceptron,
        trace: Trace,
        kept: Tensor,
    ):
        super().__init__(problem, options, "fused", None, ())
        layers, self.activation = found
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

    def again(self, inputs: Inputs) -> list[Tensor]:
        self.waves = find_waves(self.problem, *self.steps)
        return super().again(inputs)

    def pull(
        self, inputs: Inputs, kept: Sequence[Tensor], cotangents: Cotangents
    ) -> list[Tensor | None]:
        of_ys = cotangents[0]
        assert of_ys is not None
        found = (self._layers(inputs.params), self.activation)
        by_y0, by_layers = per_sample_fused.back(
            self.problem, self.tableau, found, *self.steps, kept[0], of_ys
        )
        return [by_y0, None, None, *(by_layers or [None] * len(inputs.params))]

    def _layers(self, tensors: Sequence[Tensor]) -> Layers:
        left = iter(tensors)
        return [
            (next(left), next(left) if biased else None, column)
            for biased, column in zip(self.biased, self.columns, strict=True)
        ]

    def _problem(self, inputs: Inputs) -> SampleProblem:
        outer = self.problem
        pairs = zip(self.columns, self.biased, strict=True)
        layout = [int(x) for pair in pairs for x in pair]
        func = PerceptronField(inputs.params, layout, self.activation)
        return replace(outer, field=SampleField(func, outer.field.layout, inputs.y0), y0=inputs.y0)


def solve_perceptrons(problem: SampleProblem, options: SampleOptions, forced: bool) -> Trace | None:
    """The trace of a per-sample solve with the gradients of ``FusedChain``; None where none are
    wanted or another engine makes them."""
    if not torch.is_grad_enabled() or problem.ts.shape[1] == 1 or problem.ts.requires_grad:
        return None
    found = per_sample_fused.find(problem, options)
    if found is None:
        return None
    params = per_sample_fused.tensors(found[0])
    if not recorded((problem.y0, *params)):
        return None
    with torch.no_grad():
        solved = per_sample_fused.solve(problem, options, found, forced, keep=True)
    if solved is None:
        return None
    trace, kept = solved
    assert kept is not None
    chain = FusedChain(problem, options, found, trace, kept)
    inputs = Inputs(problem.y0, None, None, (), tuple(params), handed=True)
    (ys,) = solve_in_one_node(chain, inputs)
    chain.trace = None
    return replace(trace, ys=ys)
