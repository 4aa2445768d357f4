"""What all regularisers share: a solve that returns its solution and a penalty."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastnode.api.embedded_step import find_tableau
from fastnode.control.stiffness import Stiffness
from fastnode.engines.methods import ADAPTIVE, SOLVED
from fastnode.problem.ivp import State, clock_dtype
from fastnode.solution import Solution

#: The method of a solve that names none, as in ``fastnode.solve``.
METHOD = "tsit5"
KINDS = ("error", "stiffness")


class Regularizer(ABC):
    """Solves as ``fastnode.solve`` does and returns the penalty to add to the training loss.

        solution, penalty = regularizer.solve(func, y0, ts, rtol=1e-4)
        (loss(solution.ys[-1]) + penalty).backward()

    ``fastnode.nn.NeuralODE(field, regularizer=...)`` does the same while it is in training mode.

    Attributes:
        step: the training step, for schedules of weights; the training loop sets it.
        generator: source of random numbers; torch's default one if None.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self.step = 0
        self.generator = generator

    def solve(
        self, func: Callable[..., Any], y0: State, ts: Tensor, **options: Any
    ) -> tuple[Solution, Tensor]:
        """The solution and the weighted penalty, a scalar with its gradient.

        Args:
            func, y0, ts, options: the arguments of ``fastnode.solve``.

        Raises:
            ValueError, TypeError: the regulariser cannot work with these arguments, or ``solve``
                cannot; named before any work is done.
            SolverError: as ``solve`` does.
        """
        if isinstance(ts, Tensor) and ts.dim() and ts.shape[-1] < 2:
            raise ValueError(f"ts must hold at least 2 times, got shape {tuple(ts.shape)}")
        if options.get("events") is not None:
            raise ValueError("events must be None in a regularised solve, whose end it knows")
        options = {"method": METHOD, "rtol": 1e-3, "atol": 1e-6, **options}
        self.check(options["method"])
        return self._solve(func, y0, ts, options)

    def check(self, method: str) -> None:
        """Raises ValueError for a method of the solve that this regulariser cannot work with."""
        if method not in SOLVED:
            raise ValueError(f"method must be one of {', '.join(SOLVED)}, got {method!r}")

    @abstractmethod
    def _solve(
        self, func: Callable[..., Any], y0: State, ts: Tensor, options: dict[str, Any]
    ) -> tuple[Solution, Tensor]: ...

    def _uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1), float64, on the CPU."""
        device = torch.device("cpu") if self.generator is None else self.generator.device
        dtype = clock_dtype(device)
        drawn = torch.rand(shape, dtype=dtype, device=device, generator=self.generator)
        return drawn.cpu().double()

    def _normal_like(self, x: Tensor) -> Tensor:
        """Standard normal numbers."""
        device = x.device if self.generator is None else self.generator.device
        drawn = torch.randn(x.shape, dtype=x.dtype, device=device, generator=self.generator)
        return drawn.to(x.device)


def needs_error_estimate(method: str, caller: str) -> None:
    """Raises ValueError for a method that does not choose its steps."""
    if method not in ADAPTIVE:
        raise ValueError(
            f"{caller} needs a method that chooses its steps ({', '.join(ADAPTIVE)}), "
            f"got {method!r}"
        )


def check_kind(kind: str, method: str) -> None:
    """Raises ValueError unless the method has the estimate."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "stiffness" and not Stiffness(find_tableau(method)).known:
        able = [name for name, tableau in ADAPTIVE.items() if Stiffness(tableau).known]
        raise ValueError(f"kind='stiffness' needs one of {', '.join(able)}, got {method!r}")
    find_tableau(method)


def first_tensor(y0: State) -> Tensor:
    return y0[0] if isinstance(y0, tuple) else y0


def no_penalty(y0: State) -> Tensor:
    """A penalty of 0."""
    y = first_tensor(y0)
    # torch.compile cannot trace to_real.
    real = y.dtype.to_real() if y.is_complex() else y.dtype
    return y.new_zeros((), dtype=torch.promote_types(real, torch.float32))
