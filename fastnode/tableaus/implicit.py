"""Implicit methods of fixed steps. Square roots have 45 digits.

Sources: E. Hairer, G. Wanner, Solving Ordinary Differential Equations II, 2nd edition: Gauss,
section IV.5, tables 5.1 and 5.2; Radau IIA, tables 5.5 and 5.6; sdirk2, section IV.6, table 6.5 is
the family it belongs to (gamma = 1 - 1/sqrt 2). trbdf2: R. E. Bank et al., Transient simulation of
silicon devices and circuits, IEEE Trans. Computer-Aided Design 4 (1985), as the one-step method of
M. E. Hosea, L. F. Shampine, Analysis and implementation of TR-BDF2, Appl. Numer. Math. 20 (1996).
"""

from __future__ import annotations

from fractions import Fraction

from fastnode.tableaus.base import ImplicitTableau, exact, root


def _radau_iia_5() -> ImplicitTableau:
    s = root(6)
    last = exact(Fraction(4, 9) - s / 36, Fraction(4, 9) + s / 36, "1/9")
    return ImplicitTableau(
        "radauIIA5",
        5,
        a=(
            exact(
                Fraction(11, 45) - s * 7 / 360,
                Fraction(37, 225) - s * 169 / 1800,
                Fraction(-2, 225) + s / 75,
            ),
            exact(
                Fraction(37, 225) + s * 169 / 1800,
                Fraction(11, 45) + s * 7 / 360,
                Fraction(-2, 225) - s / 75,
            ),
            last,
        ),
        b=last,
    )


def _gauss_4() -> ImplicitTableau:
    s = root(3) / 6
    quarter = Fraction(1, 4)
    return ImplicitTableau(
        "gl4",
        4,
        a=(exact(quarter, quarter - s), exact(quarter + s, quarter)),
        b=exact("1/2", "1/2"),
    )


def _gauss_6() -> ImplicitTableau:
    s = root(15)
    outer, inner = Fraction(5, 36), Fraction(2, 9)
    return ImplicitTableau(
        "gl6",
        6,
        a=(
            exact(outer, inner - s / 15, outer - s / 30),
            exact(outer + s / 24, inner, outer - s / 24),
            exact(outer + s / 30, inner + s / 15, outer),
        ),
        b=exact("5/18", "4/9", "5/18"),
    )


def _sdirk2() -> ImplicitTableau:
    gamma = 1 - root(2) / 2
    last = exact(1 - gamma, gamma)
    return ImplicitTableau("sdirk2", 2, a=(exact(gamma, 0), last), b=last)


def _trbdf2() -> ImplicitTableau:
    gamma, outer = 1 - root(2) / 2, root(2) / 4
    last = exact(outer, outer, gamma)
    return ImplicitTableau("trbdf2", 2, a=(exact(0, 0, 0), exact(gamma, gamma, 0), last), b=last)


_HALVES = exact("1/2", "1/2")

#: Implicit methods by name.
IMPLICIT = {
    tableau.name: tableau
    for tableau in (
        ImplicitTableau("implicit_euler", 1, a=(exact(1),), b=exact(1)),
        ImplicitTableau("implicit_midpoint", 2, a=(exact("1/2"),), b=exact(1)),
        ImplicitTableau("trapezoid", 2, a=(exact(0, 0), _HALVES), b=_HALVES),
        ImplicitTableau(
            "radauIIA3", 3, a=(exact("5/12", "-1/12"), exact("3/4", "1/4")), b=exact("3/4", "1/4")
        ),
        _radau_iia_5(),
        _gauss_4(),
        _gauss_6(),
        _sdirk2(),
        _trbdf2(),
    )
}
