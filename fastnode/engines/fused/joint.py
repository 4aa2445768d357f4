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
from torch import Tensor

from fastnode import extension
from fastnode.control.request import SolveRequest
from fastnode.control.stiffness import Stiffness
from fastnode.engines.fused.generated import flat, joint_form, rows
from fastnode.engines.fused.request import native_request, packed_request
from fastnode.engines.native import joint as native
from fastnode.ops.mlp_solve import solve_in_graph
from fastnode.problem.ivp import LONE, Problem
from fastnode.solution import Solution, Steps
from fastnode.tableaus import METHODS, Tableau


def register(tableau: Tableau) -> None:
    """Makes a method known to the op by its name: a graph that torch.compile keeps can hold no
    tableau."""
    if extension.AVAILABLE:
        weights = Stiffness(tableau).weights
        extension.native().mlp_method(tableau.name, native.compiled(tableau), weights)


for _tableau in METHODS.values():
    register(_tableau)


def integrate(problem: Problem, request: SolveRequest) -> Any:
    """The states at the problem's times, [T, ...]; for a request of ``solve`` also the records of
    steps, the evaluations, the rejected steps and, for a hook that takes them, [steps, parts, ...]
    where each step begins the state and of adaptive ones the derivative."""
    grid = None
    if request.fixed is not None:
        grid = request.grid_tensor(problem).detach().double()
    layers, activation = problem.mlp
    if problem.layout is not LONE:
        return _integrate_tuple(problem, request, grid)
    if problem.traced:
        numbers, settings = packed_request(request)
        return solve_in_graph(
            layers, activation, problem.y0, problem.t, grid, request.method, numbers, settings
        )
    return extension.native().mlp_solve(
        layers, activation, problem.y0, problem.t, grid, native_request(request)
    )


def _integrate_tuple(problem: Problem, request: SolveRequest, grid: Tensor | None) -> Any:
    """The same of a generated field, whose rows hold the tensors of a tuple side by side."""
    form = joint_form(problem)
    assert form is not None
    found = extension.native().mlp_solve(
        *problem.mlp, rows(problem, form), problem.t, grid, native_request(request)
    )
    if not request.record:
        return flat(found, form)
    ys, *records, kept = found
    return flat(ys, form), *records, None if kept is None else flat(kept, form)


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
        ys=problem.layout.unpack(ys),
        status="finished",
        nfe=evaluations,
        accepted=edges.numel() - 1,
        rejected=rejected,
        steps=steps,
    )
