"""TayNODE: total derivatives against closed forms, and their integral."""

import math

import pytest
import torch

import fastnode
from fastnode.regularize import TayNODE, total_derivative

TS = torch.tensor([0.0, 1.0], dtype=torch.float64)
ORDERS = [1, 2, 3, 4, 5]


@pytest.mark.parametrize("order", ORDERS)
def test_derivatives_of_the_exponential_are_itself(y0, order):
    torch.testing.assert_close(total_derivative(lambda t, y: y, 0.3, y0, order), y0)


@pytest.mark.parametrize("order", ORDERS)
def test_derivatives_along_time_and_state(order):
    # y = tan t: y' = 1 + y^2; and y = t^7: y' = 7 y / t.
    t = torch.tensor(0.8, dtype=torch.float64)
    tangent = [1 + math.tan(0.8) ** 2]
    power = math.factorial(7) / math.factorial(7 - order) * 0.8 ** (7 - order)
    found = total_derivative(lambda t, y: 7 * y / t, t, t**7, order)
    torch.testing.assert_close(found, torch.tensor(power, dtype=torch.float64))
    if order == 2:
        found = total_derivative(lambda t, y: 1 + y * y, t, t.tan(), order)
        expected = 2 * math.tan(0.8) * tangent[0]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_derivatives_of_a_tuple(y0):
    # Sine and cosine: the fourth derivative is the state itself.
    state = total_derivative(lambda t, y: (y[1], -y[0]), 0.0, (y0, 2 * y0), 4)
    torch.testing.assert_close(state, (y0, 2 * y0))
    third = total_derivative(lambda t, y, s: (s * y[1], -s * y[0]), 0.0, (y0, y0), 3, (2.0,))
    torch.testing.assert_close(third, (-8 * y0, 8 * y0))


@pytest.mark.parametrize("engine", ["reference", "native"])
def test_the_penalty_is_the_integral_of_the_square(y0, engine):
    rate = torch.tensor(-0.9, dtype=torch.float64, requires_grad=True)
    _, penalty = TayNODE(order=2, weight=3.0).solve(
        lambda t, y: rate * y, y0, TS, rtol=1e-10, atol=1e-10, engine=engine
    )
    exact = 3 * y0.square().mean() * rate**4 * (torch.exp(2 * rate) - 1) / (2 * rate)
    torch.testing.assert_close(penalty, exact)
    (found,) = torch.autograd.grad(penalty, rate)
    torch.testing.assert_close(found, torch.autograd.grad(exact, rate)[0])


def test_the_extra_state_does_not_change_the_accepted_steps(field, y0):
    plain = fastnode.solve(field, y0, TS, rtol=1e-6, atol=1e-8)
    solution, _ = TayNODE(3).solve(field, y0, TS, rtol=1e-6, atol=1e-8)
    assert solution.nfe == plain.nfe
    torch.testing.assert_close(solution.ys, plain.ys, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: TayNODE(0), ValueError, "order must be at least 1, got 0"),
        (lambda: TayNODE(1.5), TypeError, "order must be an integer, got float"),
        (lambda: TayNODE(weight=-2.0), ValueError, "weight must be at least 0"),
        (lambda: total_derivative(torch.add, 0.0, TS, 0), ValueError, "order must be at least 1"),
    ],
)
def test_bad_arguments_are_named(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_taynode_is_positive_in_reverse_time(y0):
    found = [
        TayNODE(2).solve(lambda t, y, sign=sign: sign * 0.9 * y, y0, sign * TS)[1]
        for sign in (1, -1)
    ]
    assert found[0] > 0
    torch.testing.assert_close(*found)
