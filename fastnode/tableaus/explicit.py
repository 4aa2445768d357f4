"""Explicit methods of fixed steps."""

from __future__ import annotations

from fastnode.tableaus.base import Tableau, exact

EULER = Tableau("euler", 1, a=((),), b=exact(1))

MIDPOINT = Tableau("midpoint", 2, a=((), exact("1/2")), b=exact(0, 1))

HEUN2 = Tableau("heun2", 2, a=((), exact(1)), b=exact("1/2", "1/2"))

# K. Heun, Neue Methoden zur approximativen Integration der Differentialgleichungen einer
# unabhaengigen Veraenderlichen, Z. Math. Phys. 45 (1900).
HEUN3 = Tableau("heun3", 3, a=((), exact("1/3"), exact(0, "2/3")), b=exact("1/4", 0, "3/4"))

# W. Kutta, Beitrag zur naeherungsweisen Integration totaler Differentialgleichungen, Z. Math. Phys.
# 46 (1901): the 3/8 rule, which torchdiffeq calls rk4.
RK4 = Tableau(
    "rk4",
    4,
    a=((), exact("1/3"), exact("-1/3", 1), exact(1, -1, 1)),
    b=exact("1/8", "3/8", "3/8", "1/8"),
)
