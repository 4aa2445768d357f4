"""Order conditions over rooted trees, in exact arithmetic."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from itertools import combinations_with_replacement, product
from math import prod

import pytest

from fastnode.tableaus import DOPRI5, METHODS, TSIT5, Tableau

# tsit5 is known by decimals only (41 digits); every other method holds exactly.
TOLERANCE = {"tsit5": Fraction(1, 10**37)}

Tree = tuple  # of its subtrees


@cache
def trees(order: int) -> list[Tree]:
    """Rooted trees with so many nodes."""
    if order == 1:
        return [()]
    found = []
    for sizes in _partitions(order - 1, order - 1):
        groups = [
            combinations_with_replacement(trees(size), sizes.count(size))
            for size in sorted(set(sizes))
        ]
        found += [sum(choice, ()) for choice in product(*groups)]
    return found


def _partitions(total: int, largest: int) -> list[tuple[int, ...]]:
    if total == 0:
        return [()]
    return [
        (first, *rest)
        for first in range(min(total, largest), 0, -1)
        for rest in _partitions(total - first, first)
    ]


def nodes(tree: Tree) -> int:
    return 1 + sum(map(nodes, tree))


def density(tree: Tree) -> int:
    return nodes(tree) * prod(map(density, tree))


def stage_values(tableau: Tableau, tree: Tree) -> list[Fraction]:
    children = [stage_values(tableau, child) for child in tree]
    return [
        prod((weighted(row, child[: len(row)]) for child in children), start=Fraction(1))
        for row in tableau.a
    ]


def weighted(weights: tuple[Fraction, ...], values: list[Fraction]) -> Fraction:
    return sum((w * v for w, v in zip(weights, values, strict=True)), Fraction(0))


def violation(tableau: Tableau, weights: tuple[Fraction, ...], order: int) -> Fraction:
    """The largest error in the conditions of exactly this order."""
    return max(
        abs(weighted(weights, stage_values(tableau, tree)) - Fraction(1, density(tree)))
        for tree in trees(order)
    )


def test_number_of_trees_is_the_known_one():
    assert [len(trees(order)) for order in range(1, 8)] == [1, 1, 2, 4, 9, 20, 48]


@pytest.mark.parametrize("tableau", METHODS.values(), ids=METHODS)
def test_order_conditions_hold_up_to_the_order_and_not_beyond(tableau):
    allowed = TOLERANCE.get(tableau.name, 0)
    for order in range(1, tableau.order + 1):
        assert violation(tableau, tableau.b, order) <= allowed
    assert violation(tableau, tableau.b, tableau.order + 1) > Fraction(1, 10**6)


@pytest.mark.parametrize("tableau", [DOPRI5, TSIT5], ids=lambda t: t.name)
def test_embedded_method_is_of_order_four_and_not_five(tableau):
    embedded = tuple(b - e for b, e in zip(tableau.b, tableau.error, strict=True))
    for order in range(1, 5):
        assert violation(tableau, embedded, order) <= TOLERANCE.get(tableau.name, 0)
    assert violation(tableau, embedded, 5) > Fraction(1, 10**6)


@pytest.mark.parametrize("tableau", [DOPRI5, TSIT5], ids=lambda t: t.name)
def test_dense_output_is_of_order_four_at_every_point_of_the_step(tableau):
    allowed = TOLERANCE.get(tableau.name, 0)
    for power in range(1, 5):
        weights = tuple(row[power - 1] for row in tableau.dense)
        for order in range(1, 5):
            for tree in trees(order):
                wanted = Fraction(int(order == power), density(tree))
                found = weighted(weights, stage_values(tableau, tree))
                assert abs(found - wanted) <= allowed


@pytest.mark.parametrize("tableau", [DOPRI5, TSIT5], ids=lambda t: t.name)
def test_dense_output_joins_steps_with_one_derivative(tableau):
    ends = tuple(sum(row, Fraction(0)) for row in tableau.dense)
    slopes = tuple(sum((p * v for p, v in enumerate(row, 1)), Fraction(0)) for row in tableau.dense)
    assert ends == tableau.b
    first = [row[0] for row in tableau.dense]
    assert first == [1, 0, 0, 0, 0, 0, 0]
    last = [0, 0, 0, 0, 0, 0, 1]
    allowed = TOLERANCE.get(tableau.name, 0)
    assert all(abs(s - w) <= allowed * 10 for s, w in zip(slopes, last, strict=True))


def test_first_same_as_last_methods_are_recognised():
    assert [name for name, tableau in METHODS.items() if tableau.fsal] == ["dopri5", "tsit5"]


def test_tsit5_stability_size_is_where_its_stability_function_leaves_the_unit_disc():
    def growth(z: float) -> float:
        """R(z) = 1 + z b (I - z A)^-1 1, by forward substitution."""
        stages = []
        for row in TSIT5.a:
            stages.append(1 + z * sum(float(a) * k for a, k in zip(row, stages, strict=True)))
        return 1 + z * sum(float(b) * k for b, k in zip(TSIT5.b, stages, strict=True))

    assert abs(growth(-(TSIT5.stability - 1e-3))) < 1 < abs(growth(-(TSIT5.stability + 1e-3)))


def test_a_method_without_embedded_error_or_dense_output_says_so():
    with pytest.raises(ValueError, match="euler"):
        _ = METHODS["euler"].error_weights
    with pytest.raises(ValueError, match="euler"):
        _ = METHODS["euler"].dense_weights
