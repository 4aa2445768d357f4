"""Explicit methods that users register: their coefficients are checked and completed.

A method with an error estimate needs two things that most published tables lack: a last stage at
the end of the step, with which the next step begins (FSAL), and dense output. Both are added: one
more stage, which costs nothing where the step is accepted, and the cubic with the values and the
derivatives at both ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cache
from itertools import combinations_with_replacement, product
from typing import Any

from fastnode.tableaus.base import Row, Tableau

#: Below csrc/common/terms.h, which has room for dense output too.
MOST_STAGES = 24
#: Coefficients that were rounded to double precision hold the order conditions to about this.
TOLERANCE = 1e-9

Tree = tuple[Any, ...]


def make_tableau(
    name: str,
    a: Sequence[Sequence[Any]],
    b: Sequence[Any],
    order: int,
    b_hat: Sequence[Any] | None,
) -> Tableau:
    """The tableau of ``fastnode.register_method``, which says what is raised."""
    if not isinstance(order, int) or isinstance(order, bool) or not 1 <= order <= 8:
        raise ValueError(f"order must be an integer from 1 to 8, got {order!r}")
    rows = tuple(_row(f"a[{i}]", row) for i, row in enumerate(_sequence("a", a)))
    weights = _row("b", b)
    if not 1 <= len(rows) <= MOST_STAGES:
        raise ValueError(f"a must have 1 to {MOST_STAGES} rows, got {len(rows)}")
    for i, row in enumerate(rows):
        if len(row) != i:
            raise ValueError(f"a[{i}] must have {i} entries (an explicit method), got {len(row)}")
    if len(weights) != len(rows):
        raise ValueError(
            f"b must have one entry for each of {len(rows)} rows of a, got {len(weights)}"
        )
    _check_order("b", rows, weights, order)
    if b_hat is None:
        return Tableau(name, order, rows, weights)
    embedded = _row("b_hat", b_hat)
    if len(embedded) != len(weights):
        raise ValueError(f"b_hat must have {len(weights)} entries like b, got {len(embedded)}")
    _check_order("b_hat", rows, embedded, 1)
    error = tuple(x - y for x, y in zip(weights, embedded, strict=True))
    if not any(error):
        raise ValueError("b_hat must differ from b: their difference estimates the error")
    return _completed(Tableau(name, order, rows, weights, error))


def same_coefficients(first: Tableau, second: Tableau) -> bool:
    return all(
        getattr(first, name) == getattr(second, name) for name in ("order", "a", "b", "error")
    )


def _completed(tableau: Tableau) -> Tableau:
    zero = (Fraction(0),)
    if not tableau.fsal:
        assert tableau.error is not None
        tableau = replace(
            tableau,
            a=(*tableau.a, tableau.b),
            b=tableau.b + zero,
            error=tableau.error + zero,
        )
    last = len(tableau.b) - 1
    dense = tuple(
        (Fraction(i == 0), 3 * w - 2 * (i == 0) - (i == last), -2 * w + (i == 0) + (i == last))
        for i, w in enumerate(tableau.b)
    )
    return replace(tableau, dense=dense, stability=stability_length(tableau.a, tableau.b))


def stability_length(a: Sequence[Row], b: Row) -> float:
    """How far |R(z)| <= 1 along the negative real axis, R(z) = 1 + sum_p z^p b A^(p-1) 1."""
    powers = [Fraction(1)]
    column = [Fraction(1)] * len(b)
    for _ in b:
        powers.append(_dot(b, column))
        column = [_dot(row, column) for row in a]
    polynomial = [float(x) for x in powers]

    def stable(x: float) -> bool:
        value = 0.0
        for c in reversed(polynomial):
            value = value * -x + c
        return abs(value) <= 1

    step, x = 0.01, 0.01
    while stable(x) and x < 1000:
        x += step
    low, high = x - step, x
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if stable(middle) else (low, middle)
    return low


def _sequence(name: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{name} must be a tuple or a list, got {type(value).__name__}")
    return value


def _row(name: str, value: Any) -> Row:
    return tuple(_fraction(f"{name}[{i}]", x) for i, x in enumerate(_sequence(name, value)))


def _fraction(name: str, value: Any) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, (int, float, str, Fraction)):
        raise TypeError(
            f"{name} must be a number, a Fraction or a string such as '3/8', got "
            f"{type(value).__name__}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    try:
        return Fraction(value)
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{name} must be a number such as '3/8', got {value!r}") from error


def _dot(row: Sequence[Any], column: Sequence[Any]) -> Any:
    """The sum of products; a row of a tableau may be shorter than the column."""
    return sum(x * y for x, y in zip(row, column, strict=False))


def _check_order(name: str, a: Sequence[Row], b: Row, order: int) -> None:
    """Raises ValueError unless the weights meet the conditions of every rooted tree.

    Source: E. Hairer, S. P. Norsett, G. Wanner, Solving Ordinary Differential Equations I, 2nd
    edition, section II.2, theorem 2.13.
    """
    rows = [[float(x) for x in row] for row in a]
    weights = [float(x) for x in b]

    @cache
    def stages(tree: Tree) -> list[float]:
        inner = [stages(child) for child in tree]
        return [math.prod(_dot(row, each) for each in inner) for row in rows]

    for nodes in range(1, order + 1):
        for tree in trees(nodes):
            found = sum(w * x for w, x in zip(weights, stages(tree), strict=True))
            wanted = 1 / density(tree)
            if abs(found - wanted) > TOLERANCE:
                raise ValueError(
                    f"{name} must have order {order}: a condition of order {nodes} wants "
                    f"{wanted:.6g}, got {found:.6g}"
                )


@cache
def trees(nodes: int) -> tuple[Tree, ...]:
    """Rooted trees with so many nodes, each the tuple of its subtrees."""
    if nodes == 1:
        return ((),)
    found: list[Tree] = []
    for sizes in _partitions(nodes - 1, nodes - 1):
        groups = [
            combinations_with_replacement(trees(size), sizes.count(size))
            for size in sorted(set(sizes))
        ]
        found += [sum(choice, ()) for choice in product(*groups)]
    return tuple(found)


def _partitions(total: int, largest: int) -> list[tuple[int, ...]]:
    if total == 0:
        return [()]
    return [
        (first, *rest)
        for first in range(min(total, largest), 0, -1)
        for rest in _partitions(total - first, first)
    ]


def density(tree: Tree) -> int:
    """The product of the sizes of all subtrees."""
    return _size(tree) * math.prod(density(child) for child in tree)


def _size(tree: Tree) -> int:
    return 1 + sum(_size(child) for child in tree)
