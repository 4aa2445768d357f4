"""Adams methods: integrals of the polynomial through the slopes at the last times."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from typing import Any

from fastnode.tableaus.base import Row


def integral_weights(nodes: Sequence[Any]) -> list[Any]:
    """w with int_0^1 p(x) dx = sum_j w_j p(nodes_j) for every polynomial p of degree < len(nodes).

    The nodes, distinct, are of any type that can be added, multiplied and divided: Fraction, float
    or 0-dim tensors. Source: E. Hairer, S. P. Norsett, G. Wanner, Solving Ordinary Differential
    Equations I, 2nd edition, section III.5 (integrals of the Lagrange polynomials).
    """
    weights = []
    for j, node in enumerate(nodes):
        # The coefficients of prod_{i != j} (x - nodes_i) / (node - nodes_i), lowest power first.
        coefficients: list[Any] = [node * 0 + 1]
        for i, other in enumerate(nodes):
            if i != j:
                scale = node - other
                shifted = [node * 0, *coefficients]
                coefficients = [
                    (up - other * here) / scale
                    for up, here in zip(shifted, [*coefficients, node * 0], strict=True)
                ]
        weights.append(sum(c / (p + 1) for p, c in enumerate(coefficients)))
    return weights


@cache
def adams_bashforth(order: int) -> Row:
    """Weights of the slopes at steps n, n - 1, ..., n + 1 - order."""
    return tuple(integral_weights([Fraction(-j) for j in range(order)]))


@cache
def adams_moulton(order: int) -> Row:
    """Weights of the slopes at steps n + 1, n, ..., n + 2 - order."""
    return tuple(integral_weights([Fraction(1 - j) for j in range(order)]))
