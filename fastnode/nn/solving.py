"""How modules solve: by ``odeint``, or with a regulariser or an adjoint of their own.

Each function is all that a module does between its networks, so that torch.compile, where it cannot
hold a solve, breaks its graph in one place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastnode.api.fixed_in_graph import end_in_graph, solve_in_graph
from fastnode.api.odeint_counted import odeint_counted
from fastnode.api.solve import solve
from fastnode.control.controllers import Controller
from fastnode.engines import select
from fastnode.regularize import Regularizer
from fastnode.regularize.base import no_penalty
from fastnode.torch_support.compile import is_exporting, traced_by

#: The options of ``odeint`` that ``solve`` knows too.
OPTIONS = ("first_step", "min_step", "max_step", "max_num_steps", "step_size")
#: Steps as ``odeint`` takes them, so that evaluations with and without a regulariser compare.
CONTROLLER = Controller(keeps_accepted=True)


def check_regularizer(
    regularizer: Any, method: str, options: Mapping[str, Any] | None = None
) -> None:
    """Raises TypeError or ValueError for what a module cannot solve with a regulariser."""
    if regularizer is None:
        return
    if not isinstance(regularizer, Regularizer):
        raise TypeError(
            f"regularizer must be a fastnode.regularize.Regularizer, got "
            f"{type(regularizer).__name__}"
        )
    regularizer.check(method)
    check_options("a regularizer", options)


def check_options(what: str, options: Mapping[str, Any] | None) -> None:
    """Raises ValueError for options that go together with ``odeint`` alone."""
    unknown = sorted(set(options or ()) - set(OPTIONS))
    if unknown:
        raise ValueError(
            f"options must be among {', '.join(OPTIONS)} with {what}, got {', '.join(unknown)}"
        )


def _end_in_graph(
    field: nn.Module,
    z0: Tensor,
    times: list[float],
    *,
    method: str,
    options: dict[str, Any] | None = None,
    **tolerances: Any,
) -> tuple[Tensor, Tensor, int] | None:
    # A compiled graph may hold the fused solve, an exported one plain formulas only.
    fusable = hasattr(type(field), "perceptron") and not is_exporting()
    if options or not fusable:
        found = end_in_graph(field, z0, times, method, options)
        return None if found is None else (found[0], no_penalty(z0), found[1])
    if not select.traceable(method, options, None):
        return None
    states, nfe = odeint_counted(field, z0, as_times(times), method=method, **tolerances)
    return states[-1], no_penalty(z0), nfe


@traced_by(_end_in_graph)
def solve_end(
    field: nn.Module, z0: Tensor, times: list[float], **options: Any
) -> tuple[Tensor, Tensor, int]:
    """The state at the last of times by ``odeint``, a penalty of 0 and the NFE."""
    states, nfe = odeint_counted(field, z0, as_times(times), **options)
    return states[-1], no_penalty(z0), nfe


def _states_in_graph(
    field: nn.Module,
    z0: Tensor,
    ts: Tensor,
    *,
    method: str,
    options: dict[str, Any] | None = None,
    **tolerances: Any,
) -> tuple[Tensor, Tensor, int] | None:
    if not select.traceable(method, options, None):
        return None
    states, nfe = odeint_counted(field, z0, ts, method=method, options=options, **tolerances)
    return states, no_penalty(z0), nfe


@traced_by(_states_in_graph)
def solve_states(
    field: nn.Module, z0: Tensor, ts: Tensor, **options: Any
) -> tuple[Tensor, Tensor, int]:
    """The trajectory by ``odeint``, a penalty of 0 and the NFE."""
    states, nfe = odeint_counted(field, z0, ts, **options)
    return states, no_penalty(z0), nfe


def as_times(times: list[float]) -> Tensor:
    return torch.tensor(times, dtype=torch.float64)


def _regularized_in_graph(
    module: nn.Module,
    regularizer: Regularizer | None,
    z0: Tensor,
    ts: Tensor,
    last: bool,
    **options: Any,
) -> tuple[Tensor, Tensor, int] | None:
    if regularizer is not None and module.training:
        return None
    solution = solve_in_graph(module.field, z0, ts, **options)  # pyright: ignore
    if solution is None:
        return None
    ys, nfe = solution.ys, solution.nfe
    return ys[-1] if last else ys, no_penalty(z0), nfe  # pyright: ignore


@traced_by(_regularized_in_graph)
def solve_regularized(
    module: nn.Module,
    regularizer: Regularizer | None,
    z0: Tensor,
    ts: Tensor,
    last: bool,
    **options: Any,
) -> tuple[Tensor, Tensor, int]:
    """The trajectory, or the ``last`` of its states, the penalty (0 unless the module is in
    training mode) and the NFE, per sample the mean."""
    func = module._solved(z0)  # pyright: ignore
    options = {"controller": CONTROLLER, **options}
    if regularizer is not None and module.training:
        solution, penalty = regularizer.solve(func, z0, ts, **options)  # pyright: ignore
    else:
        solution, penalty = solve(func, z0, ts, **options), no_penalty(z0)  # pyright: ignore
    ys, nfe = solution.ys, solution.nfe
    mean = nfe if isinstance(nfe, int) else round(nfe.float().mean().item())
    return ys[-1] if last else ys, penalty, mean
