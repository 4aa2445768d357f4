"""Per-sample solves of multilayer perceptrons in one native call (csrc/fused/mlp_samples.h).

Samples lie in tiles that stay in the cache; who has finished gives its place to one that waits.
Steps and states are those of the other per-sample engines up to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastnode import extension
from fastnode.engines import fused, native
from fastnode.engines.failures import Failure
from fastnode.engines.rows import SampleOptions, Trace
from fastnode.samples import SampleProblem
from fastnode.stiffness import Stiffness

LIMITS = (
    "with per_sample=True it takes an MLPField or what fastnode.fuse returns, without hooks or "
    "callbacks, a state [B, D] of float32 or float64 on the CPU with save='times', and knows no "
    "args, gradients or torch.func transforms: solve under torch.no_grad(), with adjoint='none' or "
    "by another engine"
)


def run(problem: SampleProblem, options: SampleOptions, forced: bool) -> Trace | None:
    """The trace of a solve, or None where this engine does not run it."""
    y0, func = problem.y0, problem.field.func
    layout = problem.field.layout
    if not hasattr(type(func), "perceptron") or problem.args or layout.is_tuple:
        return None
    if len(layout.shapes[0]) != 1 or options.keep_states or options.keep_slopes:
        return None
    if not fused.runs_here() or not native.available(y0, ()):
        return None
    found = fused.perceptron(func)
    if found is None:
        return None
    layers, activation = found
    inputs = (y0, problem.ts, *(x for weight, bias, _ in layers for x in (weight, bias)))
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        return None
    if y0.device.type != "cpu" or y0.is_complex():
        return None

    def per_sample(value: float | Tensor) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float64).expand(y0.shape[0]).contiguous()

    stiffness = Stiffness(options.tableau)
    first = options.first_step
    solved = extension.native().mlp_solve_samples(
        layers,
        activation,
        y0,
        problem.ts.detach().contiguous(),
        problem.direction,
        per_sample(options.tolerances.rtol),
        per_sample(options.tolerances.atol),
        native.compiled(options.tableau),
        native.control_numbers(options.controller),
        (stiffness.slopes, stiffness.states, stiffness.stability) if stiffness.known else None,
        None if first is None else per_sample(first),
        options.max_num_steps,
        options.throw,
        fused._INSTRUCTIONS,
        forced,
    )
    if solved is None:
        return None
    ys, nfe, accepted, rejected, status, *columns = solved
    names = [failure.status for failure in Failure]
    return Trace(ys, nfe, accepted, rejected, [names[each] for each in status], *columns)
