"""Butcher tableaus as exact fractions: the only place where a method's coefficients stand.

A method advances ``y' = f(t, y)`` from ``t`` to ``t + h`` by the stages

    k_i = f(t + c_i h, y + h sum_j a_ij k_j),        y_1 = y + h sum_i b_i k_i,

estimates its error by ``h sum_i e_i k_i`` with ``e = b - bhat``, and is continued inside the step
by ``y(t + x h) = y + h sum_i k_i sum_p d_ip x^p`` (dense output).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
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
        order: order of ``b``, the solution that is carried on.
        a: one row per stage; row i has i entries.
        b: one weight per stage.
        error: ``b - bhat``, or None for a method without an embedded one.
        dense: one row per stage with the coefficients of x, x^2, ..., or None.
        stability: length of the stability region along the negative real axis, where it is used
            to estimate stiffness.
    """

    name: str
    order: int
    a: tuple[Row, ...]
    b: Row
    error: Row | None = None
    dense: tuple[Row, ...] | None = None
    stability: float | None = None

    @cached_property
    def c(self) -> Row:
        """Times of the stages as fractions of the step: the row sums of ``a``."""
        return tuple(sum(row, Fraction(0)) for row in self.a)

    @property
    def fsal(self) -> bool:
        """Whether the last stage of a step is the first stage of the next one."""
        return self.b[-1] == 0 and self.a[-1] == self.b[:-1]

    @cached_property
    def stage_weights(self) -> tuple[Weights, ...]:
        return tuple(_nonzero(row) for row in self.a)

    @cached_property
    def stage_times(self) -> tuple[float, ...]:
        return tuple(float(c) for c in self.c)

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


def _row(*entries: int | str | Fraction) -> Row:
    return tuple(Fraction(entry) for entry in entries)


def _completed(total: Fraction | int, *rest: int | str) -> Row:
    """A row whose first entry makes it sum to ``total`` exactly."""
    row = _row(*rest)
    return (total - sum(row, Fraction(0)), *row)


def _difference(first: Row, second: Row) -> Row:
    return tuple(x - y for x, y in zip(first, second, strict=True))


def _quartic_through_middle(b: Row, middle: Row) -> tuple[Row, ...]:
    """Dense output of an FSAL method from y and y' at both ends and y in the middle of the step.

    The one quartic in x with those five values, written in the stages (``middle`` holds the weights
    of y(t + h/2)). Source: L. F. Shampine, Some practical Runge-Kutta formulas, Math. Comp. 46
    (1986), section 5.
    """
    rows = []
    for i, (end, mid) in enumerate(zip(b, middle, strict=True)):
        first, last = Fraction(i == 0), Fraction(i == len(b) - 1)
        square = 16 * mid - 5 * end - 4 * first + last
        cube = -32 * mid + 14 * end + 5 * first - 3 * last
        fourth = 16 * mid - 8 * end - 2 * first + 2 * last
        rows.append((first, square, cube, fourth))
    return tuple(rows)


EULER = Tableau("euler", 1, a=((),), b=_row(1))

MIDPOINT = Tableau("midpoint", 2, a=((), _row("1/2")), b=_row(0, 1))

# W. Kutta, Beitrag zur naeherungsweisen Integration totaler Differentialgleichungen, Z. Math. Phys.
# 46 (1901): the 3/8 rule, which torchdiffeq calls rk4.
RK4 = Tableau(
    "rk4",
    4,
    a=((), _row("1/3"), _row("-1/3", 1), _row(1, -1, 1)),
    b=_row("1/8", "3/8", "3/8", "1/8"),
)


def _dopri5() -> Tableau:
    """J. R. Dormand, P. J. Prince, A family of embedded Runge-Kutta formulae, J. Comput. Appl.
    Math. 6 (1980), table 2; the embedded weights and the middle of the step are those of Shampine
    (1986), which torchdiffeq uses: bhat is of order 4, y(t + h/2) of order 4 exactly.
    """
    b = _row("35/384", 0, "500/1113", "125/192", "-2187/6784", "11/84")
    bhat = _row("1951/21600", 0, "22642/50085", "451/720", "-12231/42400", "649/6300", "1/60")
    twice_middle = _row(
        "6025192743/30085553152",
        0,
        "51252292925/65400821598",
        "-2691868925/45128329728",
        "187940372067/1594534317056",
        "-1776094331/19743644256",
        "11237099/235043384",
    )
    weights = (*b, Fraction(0))
    return Tableau(
        "dopri5",
        5,
        a=(
            (),
            _row("1/5"),
            _row("3/40", "9/40"),
            _row("44/45", "-56/15", "32/9"),
            _row("19372/6561", "-25360/2187", "64448/6561", "-212/729"),
            _row("9017/3168", "-355/33", "46732/5247", "49/176", "-5103/18656"),
            b,
        ),
        b=weights,
        error=_difference(weights, bhat),
        dense=_quartic_through_middle(weights, tuple(value / 2 for value in twice_middle)),
    )


def _tsit5() -> Tableau:
    """Ch. Tsitouras, Runge-Kutta pairs of order 5(4) satisfying only the first column simplifying
    assumption, Comput. Math. Appl. 62 (2011), 770-775, section 3 (bhat_7 with its sign corrected).

    The pair is known by decimals only; here they stand to 41 digits (P. Stone's high-precision
    values), so the order conditions hold to 1e-38 and not exactly. The interpolant is given in the
    paper to 16 digits: with its exact rows 2 and 7 the other rows follow from the conditions of
    order 4, from which they were computed anew.
    """
    c5 = Fraction("0.98002554090450968572981028628702459549421")
    b = _completed(
        1,
        "1/100",
        "0.47988965041449957477524953229059651991304",
        "1.37900857410374189319227482185687277075646",
        "-3.2900695154360806799010475857113638501156",
        "2.32471052409977398241535591839876579610906",
    )
    bhat = _completed(
        1,
        "0.00918356554034325309677636393664531375981",
        "0.48777052842476157078556425996312282415166",
        "1.23429756693047898565510967388423765403553",
        "-2.7077123499835254548811099750593216706896",
        "1.86662841817058703575371939956621149866625",
        "1/66",
    )
    weights = (*b, Fraction(0))
    lower_powers = (
        _row(
            1,
            "-2.7637061972748258686729883630276822599318",
            "2.91325546182191265541864597871587957321216",
        ),
        _row(0, "1317/10000", "-2234/10000"),
        _row(
            0,
            "3.93029623689475151740929366945998549808780",
            "-5.9410338721315047357175892097575849165234",
        ),
        _row(
            0,
            "-12.411077166933677038730473396711854936808",
            "30.3381886302823216502300460808512009566422",
        ),
        _row(
            0,
            "37.5093134165110391789784391110647412519609",
            "-88.178904894766401077561068564974937904384",
        ),
        _row(
            0,
            "-27.896526289197287788984271020785189553308",
            "65.0918946747936715076299657151654422910537",
        ),
        _row(0, "3/2", -4),
    )
    return Tableau(
        "tsit5",
        5,
        a=(
            (),
            _row("161/1000"),
            _completed(Fraction("327/1000"), "0.33548065549235698854442687425023077467512"),
            _completed(
                Fraction("9/10"),
                "-6.3594484899750748431481599123838256259527",
                "4.36229543286958141101772731819088686102781",
            ),
            _completed(
                c5,
                "-11.748883564062827877747170339785772961887",
                "7.49553934288983620830460478456435815565868",
                "-0.0924950663617552492565020793320719161134",
            ),
            _completed(
                1,
                "-12.920969317847109291706118681783359395417",
                "8.15936789857615864318040079453925348518192",
                "-0.0715849732814009972245305425258297386912",
                "-0.0282690503940683829090030572127122414671",
            ),
            b,
        ),
        b=weights,
        error=_difference(weights, bhat),
        # The fourth power is what makes the polynomial end in y_1.
        dense=tuple(
            (*row, end - sum(row, Fraction(0)))
            for row, end in zip(lower_powers, weights, strict=True)
        ),
        stability=3.5068,
    )


DOPRI5 = _dopri5()
TSIT5 = _tsit5()

#: Methods by name.
METHODS = {tableau.name: tableau for tableau in (EULER, MIDPOINT, RK4, DOPRI5, TSIT5)}
