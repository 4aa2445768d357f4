"""Whole solves of multilayer perceptrons in one native call (csrc/mlp).

Fields that declare themselves perceptrons, ``fastnode.nn.MLPField`` and what ``fastnode.fuse``
returns, are solved without a call of Python: weights packed once, samples in tiles that stay in the
cache. Steps, errors and gradients are those of the native engine up to rounding. Gradients are made
by the engine itself, for adjoints backprop, checkpoint and revolve.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from fastnode import extension
from fastnode.control.request import SolveRequest
from fastnode.control.stiffness import Stiffness
from fastnode.engines.fused.mlp import perceptron
from fastnode.engines.native import joint as native
from fastnode.ops.dispatch import transformed
from fastnode.ops.mlp_solve import solve_in_graph, takes_in_graph
from fastnode.problem.ivp import LONE, Problem
from fastnode.solution import Solution, Steps
from fastnode.tableaus import METHODS, Tableau

LIMITS = (
    "it takes an MLPField or what fastnode.fuse returns, without hooks or callbacks, one tensor of "
    "float32 or float64 whose last dimension is the field's, numbers as tolerances and explicit "
    "Runge-Kutta methods, and knows no args, events, stops, norms or controllers of the caller's "
    "making, adjoints but backprop, checkpoint and revolve, torch.func transforms, or with fixed "
    "steps times inside of a step; on a GPU no gradients of local errors, no revolve, and no "
    "states of which eight samples, or with shared steps all of them at once, do not fit into its "
    "shared memory beside their slopes, activations and with gradients what these need"
)

#: The best instruction set of this machine, or the one that tests force.
_INSTRUCTIONS = extension.native().mlp_instruction_sets()[-1] if extension.AVAILABLE else 0


def register(tableau: Tableau) -> None:
    """Makes a method known to the op by its name: a graph that torch.compile keeps can hold no
    tableau."""
    if extension.AVAILABLE:
        weights = Stiffness(tableau).weights
        extension.native().mlp_method(tableau.name, native.compiled(tableau), weights)


for _tableau in METHODS.values():
    register(_tableau)


def runs_here() -> bool:
    """Whether tensors are what they seem (see engines.native)."""
    cast = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
    return extension.AVAILABLE and not transformed() and not cast


def refusal(problem: Problem, request: SolveRequest) -> str | None:
    """Why this engine does not run a solve; None if it does. It also refuses, unless it was named,
    where another engine is faster."""
    if not hasattr(type(problem.func), "perceptron") or problem.args or problem.layout is not LONE:
        return LIMITS
    compiling = torch.compiler.is_compiling()
    fits = request.derived.get("mlp_fits")
    if fits is None:
        fits = request.derived["mlp_fits"] = _fits(request)
    if not fits or not runs_here():
        return LIMITS
    if problem.y0.is_cuda and hasattr(request.on_step, "take_errors"):
        return LIMITS
    problem.mlp = found = perceptron(problem.func)
    if found is None:
        return LIMITS
    if request.fixed is not None and not _grid_fits(problem, request):
        return LIMITS
    if compiling:
        return None if takes_in_graph(found[0], problem.y0, problem.t, request.adaptive) else LIMITS
    takes = extension.native().mlp_takes(
        found[0], problem.y0, problem.t, native_request(request), request.engine == "fused"
    )
    return None if takes else LIMITS


def _fits(request: SolveRequest) -> bool:
    """Whether the request is one for this engine, whatever the problem."""
    rtol, atol, hook = request.rtol, request.atol, request.on_step
    if request.method not in METHODS or request.save != "times" or request.events:
        return False
    if type(rtol) not in (int, float) or type(atol) not in (int, float):
        return False
    if not (rtol >= 0 and atol >= 0) or request.norm is not None:
        return False
    by_engine = ("backprop", "none", "checkpoint", "revolve")
    if request.adjoint not in by_engine or request.adjoint_params is not None:
        return False
    if hook is not None and not (hasattr(hook, "take_errors") or hasattr(hook, "take_states")):
        return False
    if request.fixed is not None:
        return hook is None and request.fixed.grid_constructor is None
    if request.controller.has_own_rules or request.stops(-math.inf, math.inf, 1.0):
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
    grid = request.grid(problem)
    return 1 < len(grid) <= request.max_num_steps + 1 and set(problem.times) <= set(grid)


def native_request(request: SolveRequest) -> Any:
    """The request as C++ has it (csrc/ops/mlp/request.h)."""
    made = request.derived.get("mlp")
    if made is None or request.derived["instructions"] != _INSTRUCTIONS:
        hook = request.on_step
        made = request.derived["mlp"] = extension.native().MlpRequest(
            method=request.method,
            rtol=float(request.rtol),
            atol=float(request.atol),
            controller=native.control_numbers(request.controller) if request.adaptive else (),
            first_step=request.first_step,
            max_num_steps=request.max_num_steps,
            all_together=request.all_together,
            perturb=request.fixed is not None and request.fixed.perturb,
            record=request.record,
            keep=hasattr(hook, "take_states"),
            adjoint=request.adjoint,
            slots=request.slots,
            instructions=_INSTRUCTIONS,
        )
        request.derived["instructions"] = _INSTRUCTIONS
    return made


def integrate(problem: Problem, request: SolveRequest) -> Any:
    """The states at the problem's times, [T, ...]; for a request of ``solve`` also the records of
    steps, the evaluations, the rejected steps and, for a hook that takes them, [steps, parts, ...]
    where each step begins the state and of adaptive ones the slope."""
    grid = None
    if request.fixed is not None:
        grid = request.grid_tensor(problem).detach().double()
    layers, activation = problem.mlp
    if torch.compiler.is_compiling():
        numbers, settings = _packed(request)
        return solve_in_graph(
            layers, activation, problem.y0, problem.t, grid, request.method, numbers, settings
        )
    return extension.native().mlp_solve(
        layers, activation, problem.y0, problem.t, grid, native_request(request)
    )


def solve(problem: Problem, request: SolveRequest) -> Solution:
    """The solution with ``save="times"``. A hook ``on_step`` is not called for each step: its
    ``take_errors`` is given the steps, with the gradients of their local errors; its
    ``take_states`` the times at which accepted steps begin and the states there, [steps, ...]."""
    hook = request.on_step
    ys, records, evaluations, rejected, kept = integrate(problem, request)
    with_errors = getattr(hook, "take_errors", None)
    edges, errors, stiffness = records if with_errors is not None else records.detach()
    with_states = getattr(hook, "take_states", None)
    if with_states is not None:
        with_states(edges[:-1].tolist(), kept.detach()[:, 0])
    if request.fixed is not None:
        errors, stiffness = torch.full_like(records[1:].detach(), math.nan)
    steps = Steps(edges.detach(), errors[1:], stiffness[1:].detach(), None)
    if with_errors is not None:
        with_errors(steps)
        steps = replace(steps, error=steps.error.detach())
    return Solution(
        ts=problem.t,
        ys=ys,
        status="finished",
        nfe=evaluations,
        accepted=edges.numel() - 1,
        rejected=rejected,
        steps=steps,
    )


def _packed(request: SolveRequest) -> tuple[list[float], list[int]]:
    """``numbers`` and ``settings`` of the op (csrc/ops/mlp/request.h), in a graph of torch.compile,
    which knows no object of C++."""
    first = math.nan if request.first_step is None else request.first_step
    control = native.control_numbers(request.controller) if request.adaptive else ()
    perturb = request.fixed is not None and request.fixed.perturb
    settings = [request.max_num_steps, int(request.all_together), int(perturb), 0, 0, 0, 0]
    return [float(request.rtol), float(request.atol), first, *control], [*settings, _INSTRUCTIONS]
