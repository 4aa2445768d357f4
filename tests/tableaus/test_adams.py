from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from fastnode.tableaus.adams import adams_bashforth, adams_moulton, uneven_weights


def fractions(divisor, *values):
    return tuple(Fraction(value, divisor) for value in values)


def test_weights_are_the_known_ones():
    assert adams_bashforth(4) == fractions(24, 55, -59, 37, -9)
    assert adams_moulton(4) == fractions(24, 9, 19, -5, 1)
    assert adams_moulton(2) == fractions(2, 1, 1)


@pytest.mark.parametrize("order", range(1, 13))
def test_polynomials_below_the_order_are_integrated_exactly(order):
    for weights, first in ((adams_bashforth(order), 0), (adams_moulton(order), 1)):
        for power in range(order + 1):
            total = sum(w * Fraction(first - j) ** power for j, w in enumerate(weights))
            assert (total == Fraction(1, power + 1)) == (power < order)


@pytest.mark.parametrize("order", [1, 2, 4, 8, 12])
def test_uneven_weights_are_the_even_ones_on_an_even_grid(order):
    for weights, first in ((adams_bashforth(order), 0), (adams_moulton(order), 1)):
        nodes = first - torch.arange(order, dtype=torch.float64)
        wanted = torch.tensor([float(w) for w in weights], dtype=torch.float64)
        found = uneven_weights(nodes)
        assert (found - wanted).abs().max() < 1e-11 * wanted.abs().max()


def test_uneven_weights_integrate_polynomials():
    nodes = torch.tensor([1.0, 0.0, -0.7, -2.9, -3.3], dtype=torch.float64, requires_grad=True)
    for power in range(5):
        assert abs((uneven_weights(nodes) * nodes**power).sum() - 1 / (power + 1)) < 1e-12
    assert torch.autograd.gradcheck(uneven_weights, nodes)
