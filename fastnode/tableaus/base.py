"""Butcher tableaus of exact fractions, which hold the coefficients of a method.

An explicit method advances ``y' = f(t, y)`` from ``t`` to ``t + h`` by the stages

    k_i = f(t + c_i h, y + h sum_j a_ij k_j),        y_1 = y + h sum_i b_i k_i,

estimates its error by ``h sum_i e_i k_i`` with ``e = b - bhat``, and is continued inside the step
by ``y(t + x h) = y + h sum_i k_i sum_p d_ip x^p`` (dense output). Dense output may need further
stages, which are evaluated only for steps in which an output time lies.

In an adaptive method the last stage of a step is the first stage of the next. Where that is f at
(t + h, y_1), the method is first same as last (FSAL); in fehlberg2 and adaptive_heun it is f at a
first-order prediction of y_1, as in torchdiffeq, which costs no order and saves an evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import isqrt
from typing import NamedTuple

Row = tuple[Fraction, ...]


class Weights(NamedTuple):
    """The nonzero entries of a row of coefficients, as the loop uses them."""

    stages: tuple[int, ...]
    values: tuple[float, ...]


def _nonzero(row: Sequence[Fraction]) -> Weights:
    stages = tuple(j for j, value in enumerate(row) if value)
    return Weights(stages, tuple(float(row[j]) for j in stages))


# Compared by identity: hashing a hundred fractions costs more than a small solve.
@dataclass(frozen=True, eq=False)
class Tableau:
    """An explicit Runge-Kutta method; rows of ``a`` are strictly lower triangular.

    Args:
        name: the name callers use.
        order: order of ``b``, the solution with which the next step begins.
        a: one row per stage; row i has i entries.
        b: one weight per stage.
        error: ``b - bhat``, or None for a method without an embedded one.
        dense: one row per stage, further ones included, with the coefficients of x, x^2, ..., or
            None.
        further: rows of ``a`` for the further stages of dense output; each may use every stage
            before it.
        stability: length of the stability region along the negative real axis, for steps that
            reuse the last stage; it turns h |lambda| into an estimate of stiffness.
    """

    name: str
    order: int
    a: tuple[Row, ...]
    b: Row
    error: Row | None = None
    dense: tuple[Row, ...] | None = None
    further: tuple[Row, ...] = ()
    stability: float | None = None

    def __post_init__(self) -> None:
        # Found in the instance from now on: torch.compile cannot trace the lock that
        # cached_property takes before Python 3.12.
        _ = self.fsal, self.stage_times, self.stage_weights, self.solution_weights

    @cached_property
    def c(self) -> Row:
        """Times of the stages as fractions of the step: the row sums of ``a``."""
        return tuple(sum(row, Fraction(0)) for row in self.a)

    @cached_property
    def fsal(self) -> bool:
        """Whether the last stage of a step is the field at its end."""
        return self.b[-1] == 0 and self.a[-1] == self.b[:-1]

    @cached_property
    def stage_weights(self) -> tuple[Weights, ...]:
        return tuple(_nonzero(row) for row in self.a)

    @cached_property
    def stage_times(self) -> tuple[float, ...]:
        return tuple(float(c) for c in self.c)

    @cached_property
    def further_stages(self) -> tuple[tuple[float, Weights], ...]:
        """Time as a fraction of the step and weights of each further stage."""
        return tuple((float(sum(row, Fraction(0))), _nonzero(row)) for row in self.further)

    @cached_property
    def solution_weights(self) -> Weights:
        return _nonzero(self.b)

    @cached_property
    def error_weights(self) -> Weights:
        if self.error is None:
            raise ValueError(f"method {self.name!r} has no embedded error estimate")
        return _nonzero(self.error)

    @cached_property
    def dense_weights(self) -> tuple[tuple[int, tuple[float, ...]], ...]:
        """(stage, coefficients of x, x^2, ...) of the stages that dense output uses."""
        if self.dense is None:
            raise ValueError(f"method {self.name!r} has no dense output")
        rows = enumerate(self.dense)
        return tuple((i, tuple(float(value) for value in row)) for i, row in rows if any(row))


@dataclass(frozen=True, eq=False)
class ImplicitTableau:
    """A Runge-Kutta method whose stages depend on themselves or on later ones.

    Args:
        name: the name callers use.
        order: order of ``b``.
        a: one row per stage, each with one entry per stage.
        b: one weight per stage.
    """

    name: str
    order: int
    a: tuple[Row, ...]
    b: Row

    @cached_property
    def c(self) -> Row:
        """Times of the stages as fractions of the step: the row sums of ``a``."""
        return tuple(sum(row, Fraction(0)) for row in self.a)

    @cached_property
    def diagonal(self) -> bool:
        """Whether no stage depends on a later one, so that stages are solved one by one."""
        return not any(any(row[i + 1 :]) for i, row in enumerate(self.a))


def exact(*entries: int | str | Fraction) -> Row:
    return tuple(Fraction(entry) for entry in entries)


def completed(total: Fraction | int, *rest: int | str | Fraction) -> Row:
    """A row whose first entry makes it sum to ``total`` exactly."""
    row = exact(*rest)
    return (total - sum(row, Fraction(0)), *row)


def root(n: int) -> Fraction:
    """The square root of n to 45 digits."""
    return Fraction(isqrt(n * 10**90), 10**45)


def difference(first: Row, second: Row) -> Row:
    return tuple(x - y for x, y in zip(first, second, strict=True))
