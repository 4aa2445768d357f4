"""GMRES: linear systems given by products with their matrix."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

#: Dimensions of the Krylov space before a restart, and starts.
KRYLOV, STARTS = 50, 8


def gmres(
    matrix: Callable[[Tensor], Tensor], right: Tensor, tolerance: float
) -> tuple[Tensor, bool]:
    """x with |right - matrix(x)| <= tolerance |right|, and whether that was reached.

    The least squares problem is kept triangular by Givens rotations of plain numbers. Source: Y.
    Saad, M. H. Schultz, GMRES: a generalized minimal residual algorithm for solving nonsymmetric
    linear systems, SIAM J. Sci. Stat. Comput. 7 (1986).
    """
    x = torch.zeros_like(right)
    goal = tolerance * _length(right)
    residual = right
    for _ in range(STARTS):
        norm = _length(residual)
        if not norm > goal:
            return x, norm <= goal
        basis = [residual / norm]
        rotations: list[tuple[float, float]] = []
        triangle: list[list[float]] = []
        rest = [norm]
        while len(triangle) < KRYLOV and abs(rest[-1]) > goal:
            v = matrix(basis[-1])
            column = []
            for q in basis:
                column.append((q * v).sum().item())
                v = v - column[-1] * q
            height = _length(v)
            for i, (cosine, sine) in enumerate(rotations):
                upper, lower = column[i : i + 2]
                column[i : i + 2] = cosine * upper + sine * lower, cosine * lower - sine * upper
            pivot = math.hypot(column[-1], height)
            if not 0 < pivot < math.inf:
                break
            rotations.append((column[-1] / pivot, height / pivot))
            column[-1] = pivot
            triangle.append(column)
            rest[-1:] = [rotations[-1][0] * rest[-1], -rotations[-1][1] * rest[-1]]
            if height == 0:
                break
            basis.append(v / height)
        weights = [0.0] * len(triangle)
        for i in reversed(range(len(triangle))):
            known = sum(triangle[j][i] * weights[j] for j in range(i + 1, len(triangle)))
            weights[i] = (rest[i] - known) / triangle[i][i]
        for weight, q in zip(weights, basis, strict=False):
            x = x + weight * q
        residual = right - matrix(x)
    return x, _length(residual) <= goal


def _length(x: Tensor) -> float:
    return torch.linalg.vector_norm(x).item()
