"""What the fused engine takes, and why it refuses the rest."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastnode import extension
from fastnode.control.request import SolveRequest, no_stops
from fastnode.engines.fused.generated import joint_form, rows
from fastnode.engines.fused.mlp import generated_field, perceptron, why_not
from fastnode.engines.fused.request import native_request
from fastnode.ops.dispatch import transformed
from fastnode.ops.mlp_solve import takes_in_graph
from fastnode.problem.ivp import LONE, Problem
from fastnode.tableaus import METHODS

LIMITS = (
    "it takes an MLPField or what fastnode.fuse or compile_field returns, without hooks or "
    "callbacks, one tensor of float32 or float64 whose last dimension is the field's, numbers as "
    "tolerances and explicit Runge-Kutta methods, and knows no args or tuples (but of a compiled "
    "field numbers, tensors that all samples share, and tuples of one batch), events, stops, "
    "norms or controllers of the caller's making, adjoints but backprop, checkpoint and revolve, "
    "torch.func transforms, or with fixed steps times inside of a step; on a GPU no gradients of "
    "local errors, no revolve, and no states of which eight samples, or with shared steps all "
    "of them at once, do not fit into its shared memory beside their derivatives, "
    "activations and with gradients what these need"
)


def runs_here() -> bool:
    """Whether tensors are what they seem (see engines.native)."""
    cast = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
    return extension.AVAILABLE and not transformed() and not cast


def refusal(problem: Problem, request: SolveRequest) -> str | None:
    """Why this engine does not run a solve; None if it does. It also refuses, unless it was named,
    where another engine is faster."""
    func = problem.func
    kind = type(func)
    if not hasattr(kind, "perceptron"):
        return LIMITS
    if (problem.args or problem.layout is not LONE) and kind.perceptron is not None:
        return LIMITS
    fits = request.derived.get("mlp_fits")
    if fits is None:
        fits = request.derived["mlp_fits"] = _fits(request)
    if not fits or not extension.AVAILABLE or transformed():
        return LIMITS
    if problem.y0.is_cuda and hasattr(request.on_step, "take_errors"):
        return LIMITS
    if kind.perceptron is None:
        return _generated_refusal(problem, request)
    problem.mlp = found = perceptron(func)
    if found is None:
        return why_not(func, LIMITS)
    if request.fixed is not None and not _grid_fits(problem, request):
        return LIMITS
    if problem.traced:
        takes = takes_in_graph(found[0], problem.y0, problem.t, request.adaptive) and runs_here()
        return None if takes else LIMITS
    takes = extension.native().mlp_takes(
        *found, problem.y0, problem.t, native_request(request), request.engine == "fused"
    )
    return None if takes else LIMITS


def _generated_refusal(problem: Problem, request: SolveRequest) -> str | None:
    """The same of a compiled field."""
    if problem.traced:
        # A graph can hold no code of this process; its compiler has the field's formulas.
        return LIMITS
    form = joint_form(problem)
    if form is None:
        return LIMITS
    one = problem.layout is LONE
    if not one and hasattr(request.on_step, "take_errors"):
        # The largest of several norms has no gradient here.
        return LIMITS
    y0 = problem.y0 if one else rows(problem, form)
    gradients = _needs_gradients(problem, request)
    problem.mlp = found = generated_field(problem.func, request.engine, y0, gradients, False, form)
    if found is None:
        return why_not(problem.func, LIMITS)
    if request.fixed is not None and not _grid_fits(problem, request):
        return LIMITS
    takes = extension.native().mlp_takes(
        *found, y0, problem.t, native_request(request), request.engine == "fused"
    )
    return None if takes else LIMITS


def _needs_gradients(problem: Problem, request: SolveRequest) -> bool | None:
    """Whether the solve makes gradients; None if that is up to what the field holds."""
    if not torch.is_grad_enabled() or request.adjoint == "none":
        return False
    given = (problem.y0, problem.t, *problem.args)
    return any(isinstance(x, Tensor) and x.requires_grad for x in given) or None


def _fits(request: SolveRequest) -> bool:
    """Whether the request is one for this engine, whatever the problem."""
    rtol, atol, hook = request.rtol, request.atol, request.on_step
    if request.method not in METHODS or request.save != "times" or request.events:
        return False
    if type(rtol) not in (int, float) or type(atol) not in (int, float):
        return False
    if not (rtol >= 0 and atol >= 0) or request.norm is not None:
        return False
    if request.adaptive and rtol == 0 and atol == 0:
        return False
    by_engine = ("backprop", "none", "checkpoint", "revolve")
    if request.adjoint not in by_engine or request.adjoint_params is not None:
        return False
    if hook is not None and not (hasattr(hook, "take_errors") or hasattr(hook, "take_states")):
        return False
    if request.fixed is not None:
        return hook is None and request.fixed.grid_constructor is None
    if request.controller.has_own_rules:
        return False
    if request.stops is not no_stops and request.stops(-math.inf, math.inf, 1.0):
        return False
    # An output of a solve that failed is NaN from there on: the other engines know how.
    return request.throw


def _grid_fits(problem: Problem, request: SolveRequest) -> bool:
    """Whether fixed steps hold the outputs at their ends, or a straight line between."""
    assert request.fixed is not None
    if problem.t.requires_grad and torch.is_grad_enabled():
        return False
    if request.fixed.interp == "linear":
        return True
    if not request.record:
        return False
    if problem.t.shape[0] == 2:
        # Both lie at the ends of the grid.
        steps = request.steps or len(request.grid_tensor(problem)) - 1
        return 0 < steps <= request.max_num_steps
    grid = request.grid(problem)
    return 1 < len(grid) <= request.max_num_steps + 1 and set(problem.times) <= set(grid)
