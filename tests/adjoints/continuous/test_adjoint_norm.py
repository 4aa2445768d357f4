from __future__ import annotations

import math

import pytest
import torch

from fastnode.adjoints.continuous.adjoint_norm import AdjointNorm
from fastnode.adjoints.continuous.quadrature import Quadrature
from fastnode.problem.ivp import make_problem
from fastnode.tableaus import METHODS


@pytest.fixture
def norm():
    """Of a state of two and one parameter, beside which a step of bosh3 has been tried."""
    y0, times = torch.ones(2, dtype=torch.float64), torch.tensor([0.0, 1.0])
    parameter = torch.ones(3, dtype=torch.float64, requires_grad=True)
    problem = make_problem(lambda t, y: y, y0, times)
    norm = AdjointNorm(problem, [parameter], 1e-3, 1e-3, None, None)

    def tried(last):
        quadrature = Quadrature([parameter.detach()])
        quadrature.follow(METHODS["bosh3"], errors=True)
        for stage in range(4):
            if stage == 1:
                quadrature.begin(1.0)
            quadrature.evaluated([torch.full((3,), last if stage == 3 else 0.0).double()])
        norm.watch(quadrature)
        y = torch.ones(4, dtype=torch.float64)
        return norm(y, y, [torch.full_like(y, 0.01)], [1.0])

    return tried


def test_the_larger_of_state_and_parameter_gradients_counts(norm):
    # The last weight of bosh3's error is -1/8.
    assert norm(0.0) == pytest.approx(0.01 / 2e-3)
    assert norm(1.0) == pytest.approx(0.125 / 1e-3)


def test_a_parameter_gradient_that_is_nan_is_not_lost(norm):
    assert math.isnan(norm(math.nan))
