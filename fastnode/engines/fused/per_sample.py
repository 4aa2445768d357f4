"""Per-sample solves of multilayer perceptrons in one native call (csrc/mlp/cpu/solve_per_sample.h).

Samples lie in tiles that stay in the cache; who has finished gives its place to one that waits.
Steps and states are those of the other per-sample engines up to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastnode import extension
from fastnode.control.request import SolveRequest
from fastnode.engines.fused import request as fused_request
from fastnode.engines.fused.generated import sample_form
from fastnode.engines.fused.mlp import (
    NativeField,
    generated_field,
    perceptron,
    tensors,
    why_not,
)
from fastnode.engines.fused.refusal import runs_here
from fastnode.engines.native import joint as native
from fastnode.engines.per_sample_trace import Trace
from fastnode.problem.batch import SampleProblem
from fastnode.tableaus import Tableau

LIMITS = (
    "with per_sample=True it takes an MLPField or what fastnode.fuse or compile_field returns, "
    "without hooks or callbacks, a state [B, D] of float32 or float64 with save='times', and knows "
    "no args, tuples or other states (but of a compiled field, with args that all samples share), "
    "gradients of times, adjoints but backprop and checkpoint, or torch.func transforms; on a GPU "
    "no states of which eight samples do not fit into its shared memory beside their derivatives, "
    "activations and with gradients what these need"
)


def refusal(problem: SampleProblem, request: SolveRequest, gradients: bool) -> str | None:
    """Why this engine does not run a solve; None if it does. It also refuses, unless it was named,
    where another engine is faster. ``gradients``: whether it is to make them."""
    if request.controller.has_own_rules or request.save != "times":
        return LIMITS
    found = find(problem, gradients, request.engine)
    if found is None:
        return why_not(problem.field.func, LIMITS)
    if gradients and request.adjoint_params is not None:
        return LIMITS
    inputs = (problem.y0, problem.ts, *tensors(found))
    if not gradients and torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        return LIMITS
    takes = extension.native().mlp_takes_samples(
        *found, problem.y0.detach(), request.method, gradients, request.engine == "fused"
    )
    return None if takes else LIMITS


def find(problem: SampleProblem, gradients: bool, engine: str) -> NativeField | None:
    """What a solve is of, or None where this engine does not run it."""
    y0, func, layout = problem.y0, problem.field.func, problem.field.layout
    if not hasattr(type(func), "perceptron") or not runs_here() or native.refusal(y0, ()):
        return None
    if y0.device.type not in ("cpu", "cuda") or y0.is_complex():
        return None
    if type(func).perceptron is None:
        form = sample_form(problem)
        return None if form is None else generated_field(func, engine, y0, gradients, True, form)
    if problem.args or layout.is_tuple or len(layout.shapes[0]) != 1:
        return None
    return perceptron(func)


def solve(problem: SampleProblem, request: SolveRequest, keep: bool) -> tuple[Trace, Tensor | None]:
    """The trace of a solve that is not refused, without a graph, and if asked to ``keep`` it what
    ``back`` needs."""
    y0, found = problem.y0.detach(), find(problem, keep, request.engine)
    assert found is not None

    def per_sample(value: float | Tensor) -> Tensor:
        number = torch.as_tensor(value, dtype=torch.float64, device=y0.device)
        return number.expand(y0.shape[0]).contiguous()

    first = request.first_step
    ys, nfe, accepted, rejected, status, *columns, kept = extension.native().mlp_solve_samples(
        *found,
        y0,
        problem.ts.detach().contiguous(),
        problem.direction,
        per_sample(request.rtol),
        per_sample(request.atol),
        None if first is None else per_sample(first),
        extension.native().MlpRequest(
            method=request.method,
            controller=native.control_numbers(request.controller),
            max_num_steps=request.max_num_steps,
            keep=keep,
            instructions=fused_request.INSTRUCTIONS,
        ),
        request.throw,
    )
    # On the CPU a list of numbers, on a GPU a tensor.
    status = torch.as_tensor(status, dtype=torch.int8)
    return Trace(ys, nfe, accepted, rejected, status, *columns), kept


def back(
    problem: SampleProblem,
    tableau: Tableau,
    found: NativeField,
    accepted: Tensor,
    t1: Tensor,
    kept: Tensor,
    of_ys: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    """The gradients of y0 and of ``tensors(layers)``, or none of these if they need none, from that
    of the solution; ``accepted`` and ``t1`` are those of the trace."""
    layers, activation = found
    return extension.native().mlp_solve_samples_backward(
        layers,
        activation,
        of_ys,
        problem.ts.detach().contiguous(),
        problem.direction,
        native.compiled(tableau),
        accepted,
        t1,
        kept,
        any(x.requires_grad for x in tensors(found)),
        fused_request.INSTRUCTIONS,
    )
