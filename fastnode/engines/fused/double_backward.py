"""Gradients of a fused solve that have gradients themselves: its steps once more, by torch.

The fused engine's own gradient is a number without history. Where one is wanted that can be
differentiated again (``create_graph=True``) the steps that the solve took are repeated by the
reference's operations, with their sizes as constants, and autograd does the rest: the same gradient
up to rounding, in the memory and the time of the native engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnode.engines.fused.generated import GeneratedField, moved_time
from fastnode.engines.fused.mlp import ACTIVATIONS, FIRST_GENERATED
from fastnode.engines.reference.step import Step, combine, take_step
from fastnode.ops.rk_error import rk_error_reference
from fastnode.problem.ivp import Time, to_float
from fastnode.tableaus import METHODS, Tableau
from fastnode.torch_support.partial_grad import PartialGradGates


class PerceptronField:
    """A perceptron as the engines call a field: t a number, or one for each row of y."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        layout: Sequence[int],
        activation: int,
        forward: bool = True,
    ):
        self.layers: list[tuple[Tensor, Tensor | None, int]] = []
        left = iter(parameters)
        for column, has_bias in zip(layout[::2], layout[1::2], strict=True):
            self.layers.append((next(left), next(left) if has_bias else None, column))
        self.activate = list(ACTIVATIONS.values())[activation]
        self.direction = 1.0 if forward else -1.0

    def __call__(self, t: Time, y: Tensor, side: int = 0) -> Tensor:
        time = moved_time(t, y.dtype, side, self.direction)
        for i, (weight, bias, column) in enumerate(self.layers):
            y = self.activate(y) if i else y
            if column >= 0:
                appended = time[:, None] if time.dim() else time.expand(*y.shape[:-1], 1)
                y = torch.cat([y[..., :column], appended, y[..., column:]], dim=-1)
            y = F.linear(y, weight, bias)
        return y


def gradients(
    y0: Tensor,
    t: Tensor,
    parameters: Sequence[Tensor],
    layout: Sequence[int],
    activation: int,
    request: Any,
    steps: Tensor,
    of_ys: Tensor | None,
    of_steps: Tensor | None,
) -> list[Tensor | None]:
    """Gradients of y0, t and the parameters, given those of the solution at the times and of the
    records of steps; None for what needs none. ``request`` is that of C++."""
    tableau, edges = METHODS[request.method], steps[0].tolist()
    rtol, atol, adaptive, perturb = request.rtol, request.atol, request.adaptive, request.perturb
    gates = PartialGradGates()
    y0, t, *parameters = map(gates, (y0, t, *parameters))
    start: Any = edges[0]
    if t.requires_grad:
        # All of the solve moves with its first time.
        start = t[0].double()
    times = [start + (edge - edges[0]) for edge in edges]
    outputs = list(t.double().unbind()) if t.requires_grad else t.tolist()
    forward = edges[-1] > edges[0]
    field: Any
    if activation < FIRST_GENERATED:
        field = PerceptronField(parameters, layout, activation, forward)
    else:
        field = GeneratedField(activation, parameters, forward)
    ys, errors = _replay(field, tableau, y0, times, outputs, rtol, atol, adaptive, perturb)
    results, upstream = [], []
    if of_ys is not None:
        results.append(torch.stack(ys))
        upstream.append(of_ys)
    if of_steps is not None and adaptive:
        results.append(torch.stack(errors))
        upstream.append(of_steps[1, 1:].to(errors[0].dtype))
    inputs = [y0, t, *parameters]
    wanted = [x for x in inputs if x.requires_grad]
    found = iter(
        torch.autograd.grad(results, wanted, upstream, create_graph=True, allow_unused=True)
    )
    gates.open()
    return [next(found) if x.requires_grad else None for x in inputs]


def _replay(
    field: Any,
    tableau: Tableau,
    y0: Tensor,
    edges: Sequence[Time],
    outputs: Sequence[Time],
    rtol: float,
    atol: float,
    adaptive: bool,
    perturb: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """The solution at ``outputs``, and the local errors of the steps between ``edges``."""
    direction = 1 if to_float(edges[-1]) > to_float(edges[0]) else -1
    y, f, ys, errors = y0, field(edges[0], y0), [y0], []
    for t, t1 in pairwise(edges):
        if not adaptive:
            f = field(t, y, int(perturb))
        step, end = take_step(field, tableau, t, t1, y, f, adaptive or perturb), to_float(t1)
        while len(ys) < len(outputs) and (to_float(outputs[len(ys)]) - end) * direction <= 0:
            ys.append(_output(step, outputs[len(ys)], adaptive))
        if adaptive:
            stages, weights = tableau.error_weights
            h = end - to_float(t)
            derivatives = [step.k[j] for j in stages]
            scaled = [h * w for w in weights]
            errors.append(rk_error_reference(y, step.y1, derivatives, scaled, rtol, atol))
        y, f = step.y1, step.k[len(tableau.a) - 1]
    return ys, errors


def _output(step: Step, t: Time, adaptive: bool) -> Tensor:
    if not isinstance(t, Tensor) and t == step.t1:
        return step.y1
    if adaptive:
        return step.at(t)
    assert step.tableau is not None
    return combine(step.y, step.k, t - step.t, step.tableau.solution_weights)
