"""The first step of a solve of a perceptron or a compiled field in one native call, and its local
error's gradient.

What local regularisation adds to a training step, and what that costs: bench/bench_local.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastnode import extension
from fastnode.engines.fused import request as fused_request
from fastnode.engines.fused.double_backward import PerceptronField
from fastnode.engines.fused.generated import GeneratedField
from fastnode.engines.fused.mlp import FIRST_GENERATED, generated_field, perceptron, tensors
from fastnode.engines.fused.refusal import runs_here
from fastnode.engines.reference.step import take_step
from fastnode.ops.rk_error import rk_error_reference
from fastnode.tableaus import METHODS, Tableau
from fastnode.torch_support.partial_grad import PartialGradGates


def first_step(
    func: Callable[..., Any],
    t: float,
    end: float,
    y: Any,
    tableau: Tableau,
    rtol: Any,
    atol: Any,
    hold_k1: bool,
) -> tuple[Tensor, float] | None:
    """The local error in units of the tolerances, a float32 or float64 scalar with gradients for
    func's parameters, and the size of the step with which a solve from (t, y) to ``end`` begins;
    None where this engine does not take it.

    Args:
        y: a constant to the gradient, as the size of the step is.
        hold_k1: whether the derivative at (t, y) is one too.
    """
    if torch.compiler.is_compiling() or not runs_here() or not isinstance(y, Tensor):
        return None
    if not isinstance(rtol, (int, float)) or not isinstance(atol, (int, float)):
        return None
    if hasattr(type(func), "native_field"):
        found = generated_field(func, "auto", y.detach(), None, False)
    else:
        found = perceptron(func)
    if found is None or t == end:
        return None
    held, number = found
    numbers = (tableau.name, float(rtol), float(atol), hold_k1)
    with torch.no_grad():
        taken = extension.native().mlp_first_step(
            held, number, y.detach(), t, end, *numbers[:3], fused_request.INSTRUCTIONS
        )
    if taken is None:
        return None
    t1, error, kept = taken
    layout = []
    if number < FIRST_GENERATED:
        layout = [(column, bias is not None) for _, bias, column in held]
    rule = _Rule(layout, number, t, t1, error, *numbers)
    return _Error.apply(rule, kept, *tensors(found)), t1 - t


@dataclass(frozen=True, eq=False)
class _Rule:
    """What a step was, but for tensors."""

    #: Of a perceptron's layers the column of the time, and whether there is a bias.
    layout: list[tuple[int, bool]]
    number: int
    t: float
    t1: float
    error: float
    method: str
    rtol: float
    atol: float
    hold_k1: bool

    def held(self, parameters: Sequence[Tensor]) -> list[Any]:
        """The parameters as C++ takes them."""
        if self.number >= FIRST_GENERATED:
            return list(parameters)
        left = iter(parameters)
        return [(next(left), next(left) if biased else None, x) for x, biased in self.layout]

    def error_by_torch(self, kept: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        y, tableau, forward = kept[0, 0], METHODS[self.method], self.t1 > self.t
        field: Any
        if self.number >= FIRST_GENERATED:
            field = GeneratedField(self.number, parameters, forward)
        else:
            layout = [int(x) for pair in self.layout for x in pair]
            field = PerceptronField(parameters, layout, self.number, forward)
        f = kept[0, 1] if self.hold_k1 else field(self.t, y)
        step = take_step(field, tableau, self.t, self.t1, y, f, perturb=True)
        stages, weights = tableau.error_weights
        scaled = [(self.t1 - self.t) * w for w in weights]
        derivatives = [step.k[j] for j in stages]
        return rk_error_reference(y, step.y1, derivatives, scaled, self.rtol, self.atol)


class _Error(torch.autograd.Function):
    """The error of a step that was taken, as a function of the parameters."""

    @staticmethod
    def forward(ctx: Any, rule: _Rule, kept: Tensor, *parameters: Tensor) -> Tensor:
        ctx.rule = rule
        ctx.save_for_backward(kept, *parameters)
        return kept.new_tensor(rule.error)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        rule: _Rule = ctx.rule
        kept, *parameters = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, None, *_gradients_by_torch(rule, kept, parameters, upstream)
        found = extension.native().mlp_first_step_backward(
            rule.held(parameters),
            rule.number,
            kept,
            rule.t,
            rule.t1,
            rule.method,
            rule.rtol,
            rule.atol,
            rule.error,
            float(upstream),
            rule.hold_k1,
            fused_request.INSTRUCTIONS,
        )
        return None, None, *found


def _gradients_by_torch(
    rule: _Rule, kept: Tensor, parameters: Sequence[Tensor], upstream: Tensor
) -> list[Tensor | None]:
    """Gradients that have gradients themselves."""
    gates = PartialGradGates()
    inputs = [gates(x) for x in parameters]
    wanted = [x for x in inputs if x.requires_grad]
    error = rule.error_by_torch(kept, inputs)
    found = iter(torch.autograd.grad(error, wanted, upstream, create_graph=True, allow_unused=True))
    gates.open()
    return [next(found) if x.requires_grad else None for x in inputs]
