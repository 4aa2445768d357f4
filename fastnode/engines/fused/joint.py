"""Whole solves of multilayer perceptrons in one native call (csrc/fused).

Fields that declare themselves perceptrons, ``fastnode.nn.MLPField`` and what ``fastnode.fuse``
returns, are solved without a call of Python: weights packed once, samples in tiles that stay in the
cache. Steps, errors and gradients are those of the native engine up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastnode import extension
from fastnode.control.controllers import Controller
from fastnode.control.stiffness import Stiffness
from fastnode.engines.fused.mlp import Perceptron, perceptron
from fastnode.engines.native import joint as native
from fastnode.ops.dispatch import transformed
from fastnode.ops.mlp_solve import solve_in_graph
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

#: Steps never shrink after an accepted one in odeint (see steppers.adaptive_stepper).
_DEFAULT_CONTROL = native.control_numbers(Controller(keeps_accepted=True))


def register(tableau: Tableau) -> None:
    """Tells the op of a method, which it knows by name: a graph that torch.compile keeps can hold
    no tableau."""
    if extension.AVAILABLE:
        weights = Stiffness(tableau).weights
        extension.native().mlp_method(tableau.name, native.compiled(tableau), weights)


for _tableau in METHODS.values():
    register(_tableau)


def runs_here() -> bool:
    """Whether tensors are what they seem (see engines.native)."""
    cast = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
    return extension.AVAILABLE and not transformed() and not cast


def odeint(
    func: Any,
    y0: Any,
    t: Any,
    rtol: Any,
    atol: Any,
    method: str | None,
    options: Mapping[str, Any] | None,
    forced: bool,
) -> Tensor | None:
    """fastnode.odeint, or None where this engine does not run it: another one then does, or says
    what is wrong with the arguments. ``forced``: also where another one is faster."""
    if not hasattr(type(func), "perceptron"):
        return None
    if options is not None and torch.compiler.is_compiling():
        # The checks of options cannot be traced: one break of the graph, and the native engine.
        return None
    tableau = METHODS.get("dopri5" if method is None else method)
    if tableau is None or type(rtol) is not float or type(atol) is not float:
        return None
    if not (rtol >= 0 and atol >= 0) or not runs_here():
        return None
    found = perceptron(func)
    if found is None:
        return None
    if tableau.error is None:
        return _fixed(func, found, y0, t, tableau, options, forced)
    control, first_step, most = _DEFAULT_CONTROL, None, 2**31 - 1
    if options is not None:
        from fastnode.control.options import AdaptiveOptions, parse

        if not isinstance(options, Mapping) or {"norm", "step_t", "jump_t"} & set(options):
            return None
        chosen = parse(AdaptiveOptions, tableau.name, options)
        control = native.control_numbers(chosen.controller)
        first_step, most = chosen.first_step, chosen.max_num_steps
    return run(
        found,
        y0,
        t,
        tableau,
        rtol,
        atol,
        control,
        first_step=first_step,
        max_num_steps=most,
        forced=forced,
    )


def run(
    field: Perceptron,
    y0: Any,
    t: Any,
    tableau: Tableau,
    rtol: float = 0.0,
    atol: float = 0.0,
    control: tuple[float, ...] = (),
    *,
    first_step: float | None = None,
    max_num_steps: int = 0,
    counted_anew: bool = True,
    grid: Tensor | None = None,
    perturb: bool = False,
    traced: bool = False,
    keep: bool = False,
    tape: bool = True,
    slots: int | None = None,
    forced: bool = False,
) -> Any:
    """ys, with ``traced`` also the records of steps, the evaluations, the rejected steps and, if
    asked to ``keep`` them, [steps, parts, *y0.shape] where each step begins the state and of
    adaptive ones the slope; None where the tensors are not such as the op takes, or another engine
    is faster.

    Adaptive steps with the numbers of a controller, or else steps along ``grid``. For the backward
    pass a limited memory holds stages, unless there shall be no ``tape``, and states where steps
    begin, unless they are found again with ``slots`` of them in memory.
    """
    if torch.compiler.is_compiling():
        return solve_in_graph(
            *field,
            y0,
            t,
            tableau.name,
            (rtol, atol),
            control,
            (first_step, max_num_steps),
            grid,
            perturb,
            _INSTRUCTIONS,
        )
    return extension.native().mlp_solve(
        *field,
        y0,
        t,
        tableau.name,
        rtol,
        atol,
        control,
        first_step,
        max_num_steps,
        counted_anew,
        grid,
        perturb,
        traced,
        keep,
        tape,
        slots,
        forced,
        _INSTRUCTIONS,
    )


def _fixed(
    func: Any,
    found: Perceptron,
    y0: Any,
    t: Any,
    tableau: Tableau,
    options: Mapping[str, Any] | None,
    forced: bool,
) -> Tensor | None:
    from fastnode.control.options import FixedOptions, parse

    if not isinstance(t, Tensor) or t.dim() != 1 or not t.is_floating_point():
        return None
    if options is not None and (
        not isinstance(options, Mapping)
        or not set(options) <= {"step_size", "perturb", "interp"}
        or options.get("interp", "linear") != "linear"
    ):
        return None
    chosen = parse(FixedOptions, tableau.name, options)
    grid = chosen.grid(func, y0, t.detach().cpu()).double()
    return run(found, y0, t, tableau, grid=grid, perturb=chosen.perturb, forced=forced)


def solve(
    func: Any,
    y0: Any,
    ts: Any,
    tableau: Tableau,
    rtol: Any,
    atol: Any,
    controller: Controller,
    first_step: float | None,
    max_num_steps: int,
    throw: bool,
    tape: bool,
    slots: int | None,
    forced: bool,
    errors_with_graph: bool = False,
    take_states: Callable[[list[float], Tensor], None] | None = None,
) -> Solution | None:
    """fastnode.solve with ``save="times"``, or None where this engine does not run it. The local
    errors of its steps have gradients if asked for; ``take_states`` is called with the times at
    which accepted steps begin and the states there, [steps, *y0.shape], without a graph."""
    if tableau.error is None or not isinstance(rtol, (int, float)):
        return None
    if errors_with_graph and isinstance(y0, Tensor) and y0.is_cuda:
        return None
    if not isinstance(atol, (int, float)) or not (rtol >= 0 and atol >= 0) or not runs_here():
        return None
    if torch.compiler.is_compiling() or controller.has_own_rules:
        return None
    found = perceptron(func)
    # An output of a solve that failed is NaN from there on: the other engines know how.
    if found is None or not throw:
        return None
    from fastnode.solution import Solution, Steps

    result = run(
        found,
        y0,
        ts,
        tableau,
        float(rtol),
        float(atol),
        native.control_numbers(controller),
        first_step=first_step,
        max_num_steps=max_num_steps,
        counted_anew=False,
        traced=True,
        keep=take_states is not None,
        tape=tape,
        slots=slots,
        forced=forced,
    )
    if result is None:
        return None
    ys, records, evaluations, rejected, kept = result
    edges, errors, stiffness = records if errors_with_graph else records.detach()
    if take_states is not None:
        take_states(edges[:-1].tolist(), kept.detach()[:, 0])
    return Solution(
        ts=ts,
        ys=ys,
        status="finished",
        nfe=evaluations,
        accepted=edges.numel() - 1,
        rejected=rejected,
        steps=Steps(edges.detach(), errors[1:], stiffness[1:].detach(), None),
    )


def refuse(why: str = LIMITS) -> None:
    """Raises ValueError for a caller who asked for this engine by name."""
    raise ValueError(f"engine 'fused' cannot run this solve: {why}")


def solve_along(
    func: Any,
    y0: Any,
    ts: Tensor,
    tableau: Tableau,
    grid: Sequence[Any],
    max_num_steps: int,
    tape: bool,
    slots: int | None,
    forced: bool,
) -> Solution | None:
    """fastnode.solve with ``save="times"`` by steps from point to point of ``grid``, or None where
    this engine does not run it."""
    found = perceptron(func) if runs_here() and not torch.compiler.is_compiling() else None
    # Between the ends of steps fastnode.solve has a cubic, for which other engines care.
    if found is None or not all(type(t) is float for t in grid):
        return None
    if not 1 < len(grid) <= max_num_steps + 1 or not set(ts.tolist()) <= set(grid):
        return None
    edges = torch.tensor(grid, dtype=torch.float64)
    result = run(
        found, y0, ts, tableau, grid=edges, traced=True, tape=tape, slots=slots, forced=forced
    )
    if result is None:
        return None
    ys, _, evaluations, *_ = result
    steps, unknown = len(grid) - 1, torch.full((len(grid) - 1,), math.nan, dtype=torch.float64)
    return Solution(
        ts=ts,
        ys=ys,
        status="finished",
        nfe=evaluations,
        accepted=steps,
        rejected=0,
        steps=Steps(edges, unknown, unknown.clone(), None),
    )
