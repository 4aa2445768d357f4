"""The per-sample loop in C++ (csrc/driver/per_sample.h), for solves that need no graph."""

from __future__ import annotations

import torch
from torch import Tensor

from fastnode import extension
from fastnode.control.request import SolveRequest
from fastnode.control.stiffness import Stiffness
from fastnode.engines.native import joint as native
from fastnode.engines.per_sample_trace import Trace
from fastnode.problem.batch import SampleProblem

LIMITS = (
    "it takes one tensor of float32 or float64 on the CPU and methods without further stages, and "
    "knows no gradients or torch.func transforms"
)


def refusal(problem: SampleProblem, f0: Tensor, request: SolveRequest) -> str | None:
    """Why this engine does not run a solve; None if it does."""
    y0 = problem.y0
    recorded = torch.is_grad_enabled() and (y0.requires_grad or f0.requires_grad)
    takes = (
        native.refusal(y0, ()) is None
        and y0.device.type == "cpu"
        and y0.dtype in (torch.float32, torch.float64)
        and not (problem.field.layout.is_tuple or recorded or problem.ts.requires_grad)
        and not request.tableau.further
    )
    return None if takes else LIMITS


def run(problem: SampleProblem, f0: Tensor, request: SolveRequest) -> Trace | None:
    """The trace of a solve, or None if the field's results turn out to need a graph."""
    y0, shape = problem.y0, problem.field.layout.shapes[0]
    batch = y0.shape[0]

    def per_sample(value: float | Tensor) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float64).expand(batch).contiguous()

    stiffness = Stiffness(request.tableau)
    first = request.first_step
    found = extension.native().solve_per_sample(
        problem,
        y0.reshape(batch, *shape),
        f0.reshape(batch, *shape),
        problem.ts.detach().contiguous(),
        problem.direction,
        per_sample(request.tolerances.rtol),
        per_sample(request.tolerances.atol),
        native.compiled(request.tableau),
        native.control_numbers(request.controller),
        (stiffness.derivatives, stiffness.states, stiffness.stability) if stiffness.known else None,
        None if first is None else per_sample(first),
        request.max_num_steps,
        request.keep_states,
        request.keep_derivatives,
        request.throw,
    )
    if found is None:
        return None
    ys, nfe, accepted, rejected, status, *columns, states, derivatives = found
    return Trace(
        ys.reshape(ys.shape[0], *y0.shape),
        nfe,
        accepted,
        rejected,
        torch.tensor(status, dtype=torch.int8),
        *columns,
        states=states,
        derivatives=None if derivatives is None else derivatives.transpose(0, 1),
    )
