"""A solve with per-sample stepping, run as its adjoint asks."""

from __future__ import annotations

from torch import Tensor

from fastnode.adjoints.discrete.per_sample import checkpoint_samples
from fastnode.adjoints.discrete.per_sample_fused import FUSED_ADJOINTS, fused_samples
from fastnode.adjoints.select import DISCRETE, find_params
from fastnode.control.request import SolveRequest
from fastnode.engines import select
from fastnode.engines.per_sample_trace import Trace
from fastnode.ops.dispatch import transformed
from fastnode.problem.batch import SampleProblem
from fastnode.recording.per_sample import sample_solution
from fastnode.solution import Solution
from fastnode.torch_support.grad_mode import recorded


def solve_samples(ts: Tensor, samples: SampleProblem, request: SolveRequest) -> Solution:
    """The solution, with the gradients of the request's adjoint."""
    return sample_solution(ts, samples, request, _trace(samples, request))


def _trace(samples: SampleProblem, request: SolveRequest) -> Trace:
    if samples.ts.shape[1] > 1 and request.adjoint in FUSED_ADJOINTS:
        trace = fused_samples(samples, request)
        if trace is not None:
            return trace
    if request.adjoint in DISCRETE:
        params = find_params(samples.field.func, request.adjoint, request.adjoint_params)
        known = recorded((samples.y0, samples.ts), samples.args, params)
        if known and not transformed() and samples.ts.shape[1] > 1:
            return checkpoint_samples(samples, request, params)
    return select.solve_per_sample(samples, request)
