"""The coefficients of every method, as exact fractions; they are written nowhere else."""

from fastnode.tableaus.adams import adams_bashforth, adams_moulton
from fastnode.tableaus.adaptive import ADAPTIVE_HEUN, BOSH3, DOPRI5, FEHLBERG2
from fastnode.tableaus.base import ImplicitTableau, Row, Tableau, Weights
from fastnode.tableaus.dopri8 import DOPRI8
from fastnode.tableaus.explicit import EULER, HEUN2, HEUN3, MIDPOINT, RK4
from fastnode.tableaus.implicit import IMPLICIT
from fastnode.tableaus.tsit5 import TSIT5

#: Explicit Runge-Kutta methods by name; those with an error estimate choose their steps.
METHODS = {
    tableau.name: tableau
    for tableau in (
        EULER,
        MIDPOINT,
        HEUN2,
        HEUN3,
        RK4,
        DOPRI5,
        TSIT5,
        DOPRI8,
        BOSH3,
        FEHLBERG2,
        ADAPTIVE_HEUN,
    )
}

__all__ = [
    "ADAPTIVE_HEUN",
    "BOSH3",
    "DOPRI5",
    "DOPRI8",
    "EULER",
    "FEHLBERG2",
    "HEUN2",
    "HEUN3",
    "IMPLICIT",
    "METHODS",
    "MIDPOINT",
    "RK4",
    "TSIT5",
    "ImplicitTableau",
    "Row",
    "Tableau",
    "Weights",
    "adams_bashforth",
    "adams_moulton",
]
