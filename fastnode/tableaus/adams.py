"""Adams methods: integrals of the polynomial through the derivatives at the last times."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cache

import torch
from torch import Tensor

from fastnode.tableaus.base import Row


def _integral_weights(nodes: Sequence[Fraction]) -> Row:
    """w with int_0^1 p(x) dx = sum_j w_j p(nodes_j) for every polynomial p of degree < len(nodes):
    the integrals of the Lagrange polynomials."""
    weights = []
    for j, node in enumerate(nodes):
        # The coefficients of prod_{i != j} (x - nodes_i) / (node - nodes_i), lowest power first.
        coefficients = [Fraction(1)]
        for i, other in enumerate(nodes):
            if i != j:
                raised, kept = [Fraction(0), *coefficients], [*coefficients, Fraction(0)]
                coefficients = [
                    (up - other * here) / (node - other)
                    for up, here in zip(raised, kept, strict=True)
                ]
        weights.append(sum((c / (p + 1) for p, c in enumerate(coefficients)), Fraction(0)))
    return tuple(weights)


@cache
def adams_bashforth(order: int) -> Row:
    """Weights of the derivatives at steps n, n - 1, ..., n + 1 - order.

    Source: E. Hairer, S. P. Norsett, G. Wanner, Solving Ordinary Differential Equations I, 2nd
    edition, section III.1, equation (1.5).
    """
    return _integral_weights([Fraction(-j) for j in range(order)])


@cache
def adams_moulton(order: int) -> Row:
    """Weights of the derivatives at steps n + 1, n, ..., n + 2 - order; equation (1.9) there."""
    return _integral_weights([Fraction(1 - j) for j in range(order)])


def uneven_weights(nodes: Tensor) -> Tensor:
    """The weights of int_0^1 for any nodes, [n] in float64, distinct and descending.

    Differentiable with respect to the nodes. In powers of a variable that runs over [-1, 1] the
    system is conditioned well enough for 12 nodes: an error of 1e-12.
    """
    # The result does not depend on how the variable is chosen.
    low, high = nodes.detach()[-1].clamp(max=0), nodes.detach()[0].clamp(min=1)
    shift, scale = (high + low) / 2, (high - low) / 2
    powers = torch.arange(len(nodes), dtype=nodes.dtype, device=nodes.device).unsqueeze(1)
    matrix = ((nodes - shift) / scale) ** powers
    start, end = -shift / scale, (1 - shift) / scale
    exponents = powers[:, 0] + 1
    integrals = (end**exponents - start**exponents) / (exponents * (end - start))
    return torch.linalg.solve(matrix, integrals)
