"""How modules with a regulariser or with an adjoint of their own solve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fastnode.api.solve import solve
from fastnode.control.controllers import Controller
from fastnode.regularize import Regularizer
from fastnode.regularize.base import no_penalty

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


def solve_regularized(
    module: nn.Module, regularizer: Regularizer | None, z0: Tensor, ts: Tensor, **options: Any
) -> tuple[Tensor, Tensor, int]:
    """The trajectory, the penalty (0 unless the module is in training mode) and the NFE, per
    sample the mean."""
    func = module.field
    options = {"controller": CONTROLLER, **options}
    if regularizer is not None and module.training:
        solution, penalty = regularizer.solve(func, z0, ts, **options)  # pyright: ignore
    else:
        solution, penalty = solve(func, z0, ts, **options), no_penalty(z0)  # pyright: ignore
    nfe = solution.nfe
    return solution.ys, penalty, nfe if isinstance(nfe, int) else round(nfe.float().mean().item())
