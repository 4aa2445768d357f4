"""TayNODE: a high derivative of the solution along it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastnode.problem.ivp import State
from fastnode.regularize.augmented import solve_with_integrals
from fastnode.regularize.base import Regularizer, first_tensor
from fastnode.regularize.rnode import mean_square
from fastnode.regularize.schedules import Schedule, as_schedule
from fastnode.solution import Solution


class TayNODE(Regularizer):
    """weight * int mean((d^K y / dt^K)^2) |dt| along the solution, K being ``order``.

    The mean is over all elements, and the integral is one more state, which does not change the
    accepted steps. func must know forward-mode differentiation, and each evaluation of it costs
    about 2^(K - 1).

    Args:
        order: K, at least 1.
        weight: a number or a ``Schedule``.

    Raises:
        ValueError, TypeError: an order below 1 or a weight below 0; in ``solve``,
            ``per_sample=True``.

    Source: J. Kelly, J. Bettencourt, M. Johnson, D. Duvenaud, Learning differential equations that
    are easy to solve, NeurIPS 2020, arXiv 2007.04504.
    """

    def __init__(self, order: int = 3, weight: float | Schedule = 1.0) -> None:
        super().__init__()
        _check_order(order)
        self.order, self.weight = order, as_schedule("weight", weight)

    def _solve(
        self, func: Callable[..., Any], y0: State, ts: Tensor, options: dict[str, Any]
    ) -> tuple[Solution, Tensor]:
        def integrands(
            func: Callable[..., Any], t: Tensor, y: Any, *args: Any
        ) -> tuple[Any, list[Tensor]]:
            derivatives = _derivatives(func, t, y, args, self.order)
            top = derivatives[-1]
            return derivatives[0], [mean_square(top if isinstance(top, tuple) else (top,))]

        solution, (integral,) = solve_with_integrals(func, integrands, 1, y0, ts, options)
        return solution, self.weight(self.step) * integral

    def __repr__(self) -> str:
        return f"TayNODE(order={self.order}, weight={self.weight!r})"


def total_derivative(
    func: Callable[..., Any], t: float | Tensor, y: State, order: int, args: tuple[Any, ...] = ()
) -> State:
    """d^order y / dt^order at (t, y) of the solution through that point of dy/dt = func(t, y).

    Args:
        func: as in ``fastnode.solve``; torch.func.jvp must be able to differentiate it.
        t, y: a time and a state, a tensor or a tuple of such.
        order: at least 1; order 1 is func itself.
        args: further arguments of func.

    Raises:
        ValueError, TypeError: order is no integer of at least 1.
    """
    _check_order(order)
    first = first_tensor(y)
    time = torch.as_tensor(t, dtype=first.dtype.to_real(), device=first.device)
    return _derivatives(func, time, y, args, order)[-1]


def _derivatives(
    func: Callable[..., Any], t: Tensor, y: Any, args: tuple[Any, ...], order: int
) -> tuple[Any, ...]:
    """The derivatives of order 1 to ``order``: each is that of the one before along (1, f)."""

    def derivative(t: Tensor, y: Any) -> Any:
        f = func(t, y, *args)
        return tuple(f) if isinstance(y, tuple) else f

    def extend(t: Tensor, y: Any, order: int) -> tuple[Any, ...]:
        if order == 1:
            return (derivative(t, y),)
        f = derivative(t, y)
        rates = torch.func.jvp(
            lambda t, y: extend(t, y, order - 1), (t, y), (torch.ones_like(t), f)
        )[1]
        return (f, *rates)

    return extend(t, y, order)


def _check_order(order: int) -> None:
    if not isinstance(order, int) or isinstance(order, bool):
        raise TypeError(f"order must be an integer, got {type(order).__name__}")
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")
