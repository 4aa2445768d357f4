"""Explicit embedded methods up to order 5 that are known exactly."""

from __future__ import annotations

from fractions import Fraction

from fastnode.tableaus.base import Row, Tableau, difference, exact


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


def _dopri5() -> Tableau:
    """J. R. Dormand, P. J. Prince, A family of embedded Runge-Kutta formulae, J. Comput. Appl.
    Math. 6 (1980), table 2; the embedded weights and the middle of the step are those of Shampine
    (1986), which torchdiffeq uses: bhat is of order 4, y(t + h/2) of order 4 exactly.
    """
    b = exact("35/384", 0, "500/1113", "125/192", "-2187/6784", "11/84")
    bhat = exact("1951/21600", 0, "22642/50085", "451/720", "-12231/42400", "649/6300", "1/60")
    twice_middle = exact(
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
            exact("1/5"),
            exact("3/40", "9/40"),
            exact("44/45", "-56/15", "32/9"),
            exact("19372/6561", "-25360/2187", "64448/6561", "-212/729"),
            exact("9017/3168", "-355/33", "46732/5247", "49/176", "-5103/18656"),
            b,
        ),
        b=weights,
        error=difference(weights, bhat),
        dense=_quartic_through_middle(weights, tuple(value / 2 for value in twice_middle)),
        stability=3.3065678926354933,
    )


def _bosh3() -> Tableau:
    """P. Bogacki, L. F. Shampine, A 3(2) pair of Runge-Kutta formulas, Appl. Math. Lett. 2 (1989);
    its dense output is the cubic with the values and derivatives at both ends.
    """
    b = exact("2/9", "1/3", "4/9")
    weights = (*b, Fraction(0))
    return Tableau(
        "bosh3",
        3,
        a=((), exact("1/2"), exact(0, "3/4"), b),
        b=weights,
        error=difference(weights, exact("7/24", "1/4", "1/3", "1/8")),
        dense=(
            exact(1, "-4/3", "5/9"),
            exact(0, 1, "-2/3"),
            exact(0, "4/3", "-8/9"),
            exact(0, -1, 1),
        ),
        stability=2.512745326618937,
    )


# E. Fehlberg, Low-order classical Runge-Kutta formulas with stepsize control, NASA TR R-315 (1969),
# RK1(2), here continued with the solution of order 2, as torchdiffeq does. The quadratic of its
# dense output has the derivative k_1 at the start of the step and the value y_1 at its end.
FEHLBERG2 = Tableau(
    "fehlberg2",
    2,
    a=((), exact("1/2"), exact("1/256", "255/256")),
    b=exact("1/512", "255/256", "1/512"),
    error=exact("-1/512", 0, "1/512"),
    dense=(exact(1, "-511/512"), exact(0, "255/256"), exact(0, "1/512")),
    stability=2.007843137255898,
)

# Heun's method of order 2 with Euler's of order 1 in it.
ADAPTIVE_HEUN = Tableau(
    "adaptive_heun",
    2,
    a=((), exact(1)),
    b=exact("1/2", "1/2"),
    error=exact("1/2", "-1/2"),
    dense=(exact(1, "-1/2"), exact(0, "1/2")),
    stability=1.0,
)

DOPRI5 = _dopri5()
BOSH3 = _bosh3()
