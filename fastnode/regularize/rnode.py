"""RNODE: kinetic energy and Jacobian norm along the solution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastnode.problem.ivp import State
from fastnode.regularize.augmented import solve_with_integrals
from fastnode.regularize.base import Regularizer
from fastnode.regularize.schedules import Schedule, as_schedule
from fastnode.solution import Solution


class RNODE(Regularizer):
    """kinetic * int mean(f^2) / 2 |dt| + jacobian * int mean((eps^T df/dy)^2) |dt|.

    Means are over all elements, eps is standard normal and drawn once for each solve, and the
    integrals are two more states, which do not change the accepted steps. Every evaluation of
    func costs a product of eps with its Jacobian more, which autograd makes.

    Args:
        kinetic, jacobian: weights, numbers or ``Schedule``s.
        generator: source of eps.

    Raises:
        ValueError: a weight below 0; in ``solve``, ``per_sample=True``.

    Source: C. Finlay, J.-H. Jacobsen, L. Nurbekyan, A. Oberman, How to train your neural ODE: the
    world of Jacobian and kinetic regularization, ICML 2020, arXiv 2002.02798.
    """

    def __init__(
        self,
        kinetic: float | Schedule = 0.01,
        jacobian: float | Schedule = 0.01,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(generator)
        self.kinetic = as_schedule("kinetic", kinetic)
        self.jacobian = as_schedule("jacobian", jacobian)

    def _solve(
        self, func: Callable[..., Any], y0: State, ts: Tensor, options: dict[str, Any]
    ) -> tuple[Solution, Tensor]:
        eps = [self._normal_like(x) for x in (y0 if isinstance(y0, tuple) else (y0,))]

        def integrands(
            func: Callable[..., Any], t: Tensor, y: Any, *args: Any
        ) -> tuple[Any, list[Tensor]]:
            recorded = torch.is_grad_enabled()
            with torch.enable_grad():
                parts = y if isinstance(y, tuple) else (y,)
                inputs = [x if x.requires_grad else x.detach().requires_grad_() for x in parts]
                f = func(t, tuple(inputs) if isinstance(y, tuple) else inputs[0], *args)
                derivatives = f if isinstance(f, tuple) else (f,)
                energy = mean_square(derivatives) / 2
                product = _product(derivatives, inputs, eps, recorded)
                values = [energy, mean_square(product)]
            if recorded:
                return f, values
            plain = tuple(x.detach() for x in derivatives)
            return plain if isinstance(f, tuple) else plain[0], [x.detach() for x in values]

        solution, (energy, frobenius) = solve_with_integrals(func, integrands, 2, y0, ts, options)
        weights = self.kinetic(self.step), self.jacobian(self.step)
        return solution, weights[0] * energy + weights[1] * frobenius

    def __repr__(self) -> str:
        return f"RNODE(kinetic={self.kinetic!r}, jacobian={self.jacobian!r})"


def _product(
    f: tuple[Tensor, ...], y: list[Tensor], eps: list[Tensor], recorded: bool
) -> list[Tensor]:
    """eps^T df/dy; 0 where f does not depend on y."""
    pairs = [(x, e.to(x.dtype)) for x, e in zip(f, eps, strict=True) if x.requires_grad]
    if not pairs:
        return [torch.zeros_like(x) for x in y]
    outputs, seeds = zip(*pairs, strict=True)
    found = torch.autograd.grad(outputs, y, seeds, create_graph=recorded, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, y, strict=True)]


def mean_square(parts: Any) -> Tensor:
    """The mean over the elements of all parts."""
    squares = torch.stack([x.abs().square().sum() for x in parts])
    return squares.sum() / max(sum(x.numel() for x in parts), 1)
