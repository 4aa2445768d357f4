"""Order conditions over rooted trees, in exact arithmetic."""

from __future__ import annotations

from decimal import Decimal, getcontext, localcontext
from fractions import Fraction
from functools import cache

import numpy as np
import pytest

from fastnode.tableaus import IMPLICIT, METHODS, ImplicitTableau, Tableau
from fastnode.tableaus.custom import Tree, density, trees

#: How exactly a method is known: dopri8 by published fractions that hold to 1e-17 (and dense output
#: to 22 digits), tsit5 by 41 digits, square roots to 45. Every other method holds exactly.
KNOWN_TO = {
    "dopri8": Fraction(1, 10**15),
    "tsit5": Fraction(1, 10**37),
    **dict.fromkeys(("radauIIA5", "gl4", "gl6", "sdirk2", "trbdf2"), Fraction(1, 10**43)),
}
ALL = METHODS | IMPLICIT
ADAPTIVE = {name: tableau for name, tableau in METHODS.items() if tableau.error}
EMBEDDED_ORDER = {
    "dopri5": 4,
    "tsit5": 4,
    "dopri8": 7,
    "bosh3": 2,
    "fehlberg2": 1,
    "adaptive_heun": 1,
}
DENSE_ORDER = {
    "dopri5": 4,
    "tsit5": 4,
    "dopri8": 7,
    "bosh3": 3,
    "fehlberg2": 2,
    "adaptive_heun": 2,
}


class Weighed:
    """The elementary weights of a method's stages, further ones included."""

    def __init__(self, tableau: Tableau | ImplicitTableau):
        # Products of eight of dopri8's fractions are too long: it is checked in 60 digits.
        self.rounded = tableau.name == "dopri8"
        further = tableau.further if isinstance(tableau, Tableau) else ()
        self.rows = [[self.number(entry) for entry in row] for row in (*tableau.a, *further)]
        self.values: dict[Tree, list] = {}

    def number(self, value: Fraction):
        if not self.rounded:
            return value
        with localcontext(prec=60):
            return Decimal(value.numerator) / Decimal(value.denominator)

    def stages(self, tree: Tree) -> list:
        if tree not in self.values:
            found = [self.number(Fraction(1))] * len(self.rows)
            for child in tree:
                inner = self.stages(child)
                found = [
                    value * dot(row, inner) for value, row in zip(found, self.rows, strict=True)
                ]
            self.values[tree] = found
        return self.values[tree]

    def violation(self, weights: tuple[Fraction, ...], order: int, scale: int = 1) -> Fraction:
        """The largest error in the conditions of exactly this order; ``scale`` 0 wants zeros."""
        row = [self.number(weight) for weight in weights]
        return max(
            abs(Fraction(dot(row, self.stages(tree))) - Fraction(scale, density(tree)))
            for tree in trees(order)
        )


def dot(row, values):
    """The sum of products; a row may be shorter than the values."""
    return sum((w * v for w, v in zip(row, values, strict=False) if w), row[0] * 0 if row else 0)


@pytest.fixture(autouse=True)
def sixty_digits():
    before = getcontext().prec
    getcontext().prec = 60
    yield
    getcontext().prec = before


@cache
def weighed(name: str) -> Weighed:
    return Weighed(ALL[name])


def test_number_of_trees_is_the_known_one():
    counts = [len(trees(order)) for order in range(1, 10)]
    assert counts == [1, 1, 2, 4, 9, 20, 48, 115, 286]


@pytest.mark.parametrize("name", ALL)
def test_order_conditions_hold_up_to_the_order_and_not_beyond(name):
    tableau, allowed = ALL[name], KNOWN_TO.get(name, 0)
    for order in range(1, tableau.order + 1):
        assert weighed(name).violation(tableau.b, order) <= allowed
    assert weighed(name).violation(tableau.b, tableau.order + 1) > Fraction(1, 10**6)


@pytest.mark.parametrize(("name", "order"), EMBEDDED_ORDER.items())
def test_embedded_method_is_of_its_order_and_not_beyond(name, order):
    tableau = METHODS[name]
    embedded = tuple(b - e for b, e in zip(tableau.b, tableau.error, strict=True))
    for lower in range(1, order + 1):
        assert weighed(name).violation(embedded, lower) <= KNOWN_TO.get(name, 0)
    assert weighed(name).violation(embedded, order + 1) > Fraction(1, 10**6)


@pytest.mark.parametrize(("name", "order"), DENSE_ORDER.items())
def test_dense_output_has_its_order_all_over_the_step(name, order):
    tableau = METHODS[name]
    for power in range(1, len(tableau.dense[0]) + 1):
        weights = tuple(row[power - 1] for row in tableau.dense)
        for lower in range(1, order + 1):
            found = weighed(name).violation(weights, lower, scale=int(lower == power))
            assert found <= KNOWN_TO.get(name, 0)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_dense_output_matches_both_ends_of_the_step(name):
    tableau = METHODS[name]
    further = (0,) * len(tableau.further)
    assert tuple(sum(row, Fraction(0)) for row in tableau.dense) == (*tableau.b, *further)
    assert [row[0] for row in tableau.dense] == [1] + [0] * (len(tableau.dense) - 1)


@pytest.mark.parametrize("name", ["dopri5", "tsit5", "dopri8", "bosh3"])
def test_dense_output_joins_steps_with_one_derivative(name):
    tableau = METHODS[name]
    last = len(tableau.b) - 1
    for i, row in enumerate(tableau.dense):
        slope = sum((p * value for p, value in enumerate(row, 1)), Fraction(0))
        assert abs(slope - (i == last)) <= 100 * KNOWN_TO.get(name, 0)


def test_first_same_as_last_methods_are_recognised():
    names = [name for name, tableau in METHODS.items() if tableau.fsal]
    assert names == ["dopri5", "tsit5", "dopri8", "bosh3"]


def test_stages_at_the_end_of_a_step_are_exactly_there():
    for tableau in METHODS.values():
        times = tableau.stage_times
        assert all(time == 1 or time < 1 - 1e-9 for time in times)
    assert METHODS["dopri8"].stage_times[-3:] == (1, 1, 1)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_stability_is_where_fsal_steps_begin_to_grow(name):
    tableau = METHODS[name]

    def growth(z: float) -> float:
        """Spectral radius of (y, h k_1) -> the next step's, for y' = z / h y."""
        slopes = [np.array([0.0, 1.0])]
        start = np.array([1.0, 0.0])
        for row in tableau.a[1:]:
            inner = sum((float(a) * k for a, k in zip(row, slopes, strict=True)), start)
            slopes.append(z * inner)
        end = sum((float(b) * k for b, k in zip(tableau.b, slopes, strict=True)), start)
        return abs(np.linalg.eigvals(np.array([end, slopes[-1]]))).max()

    inside = np.linspace(0.01, tableau.stability - 1e-3, 200)
    assert all(growth(-z) <= 1 for z in inside)
    assert growth(-(tableau.stability + 1e-3)) > 1


@pytest.mark.parametrize("name", IMPLICIT)
def test_implicit_methods_are_stable_for_every_decay(name):
    tableau = IMPLICIT[name]
    a = np.array([[float(value) for value in row] for row in tableau.a])
    b = np.array([float(value) for value in tableau.b])

    def growth(z: complex) -> float:
        inner = np.linalg.solve(np.eye(len(b)) - z * a, np.ones(len(b)))
        return abs(1 + z * (b @ inner))

    for size in (0.1, 1.0, 10.0, 1e3, 1e5):
        for angle in np.linspace(np.pi / 2, np.pi, 9):
            assert growth(size * np.exp(1j * angle)) <= 1 + 1e-9
    damps = name in ("implicit_euler", "radauIIA3", "radauIIA5", "sdirk2", "trbdf2")
    assert (growth(-1e9) < 1e-6) == damps


def test_diagonally_implicit_methods_are_recognised():
    diagonal = [name for name, tableau in IMPLICIT.items() if tableau.diagonal]
    assert diagonal == ["implicit_euler", "implicit_midpoint", "trapezoid", "sdirk2", "trbdf2"]


def test_tableaus_without_error_or_dense_output_say_so():
    with pytest.raises(ValueError, match="euler"):
        _ = METHODS["euler"].error_weights
    with pytest.raises(ValueError, match="euler"):
        _ = METHODS["euler"].dense_weights
