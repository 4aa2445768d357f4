from __future__ import annotations

import pytest
import torch

from fastnode.engines.reference.gmres import gmres


def system(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(n, n, dtype=torch.float64, generator=generator)
    right = torch.randn(n, dtype=torch.float64, generator=generator)
    return 2 * n**0.5 * torch.eye(n, dtype=torch.float64) + matrix, right


@pytest.mark.parametrize("n", [1, 5, 120])
def test_solution_is_that_of_the_matrix(n):
    matrix, right = system(n)
    x, reached = gmres(lambda v: matrix @ v, right, 1e-12)
    assert reached and (matrix @ x - right).norm() <= 1e-12 * right.norm()


def test_unknowns_keep_their_shape():
    matrix, right = system(6)
    x, _ = gmres(lambda v: (matrix @ v.reshape(-1)).reshape(2, 3), right.reshape(2, 3), 1e-12)
    torch.testing.assert_close(x.reshape(-1), torch.linalg.solve(matrix, right))


def test_an_exact_start_and_a_zero_right_side_need_nothing():
    def never(v):
        raise AssertionError

    x, reached = gmres(never, torch.zeros(3, dtype=torch.float64), 1e-12)
    assert reached and not x.any()
    ones = torch.ones(3, dtype=torch.float64)
    x, reached = gmres(lambda v: 2 * v, ones, 1e-14)
    assert reached and (x - ones / 2).abs().max() < 1e-15


def test_a_singular_system_is_reported():
    matrix = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert not gmres(lambda v: matrix @ v, torch.ones(2, dtype=torch.float64), 1e-6)[1]
