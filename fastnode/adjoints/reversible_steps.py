"""The steps of the reversible scheme (reversible.py), forward in time."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastnode.adjoints.stages import Before, Place, Scheme, nothing, slopes_of
from fastnode.engines.adaptive import AdaptiveStepper
from fastnode.engines.step import Step
from fastnode.ops.rk_stage import rk_stage
from fastnode.problem import Time, VectorField

#: L. The nearer to 1, the less do errors grow on the way back.
COUPLING = 0.999


def increment(
    field: VectorField, scheme: Scheme, place: Place, base: Tensor, before: Before = nothing
) -> tuple[Tensor, dict[int, Tensor]]:
    """base + Psi, and the slopes."""
    stages, weights = scheme.output(place.t, place.t1, None)
    k = slopes_of(field, scheme, place, stages, before)
    return rk_stage(base, [k[i] for i in stages], weights), k


def mixed(y: Tensor, z: Tensor) -> Tensor:
    """L y + (1 - L) z."""
    return z + COUPLING * (y - z)


def partner(
    field: VectorField,
    scheme: Scheme,
    n: int,
    t: Time,
    t1: Time,
    y1: Tensor,
    z: Tensor,
    before: Before = nothing,
) -> Tensor:
    """z_{n+1} = z_n - Psi_{-h}(t_{n+1}, y_{n+1})."""
    stages, weights = scheme.output(t1, t, None)
    k = slopes_of(field, scheme, Place(n, t1, t, y1), stages, before)
    return rk_stage(z, [k[i] for i in stages], [-w for w in weights])


class Partner:
    """z, brought to the end of the last step when it is next asked for: by then the slopes of that
    step are free."""

    def __init__(self, scheme: Scheme, y: Tensor):
        self.scheme, self._z = scheme, y
        self._due: tuple[VectorField, Time, Time, Tensor] | None = None

    def move(self, field: VectorField, t: Time, t1: Time, y1: Tensor) -> None:
        self._due = field, t, t1, y1

    def z(self) -> Tensor:
        if self._due is not None:
            field, t, t1, y1 = self._due
            self._due = None
            self._z = partner(field, self.scheme, 0, t, t1, y1, self._z)
        return self._z


class ReversibleStepper(AdaptiveStepper):
    """Steps whose sizes are chosen by the error of Psi_h(t_n, z_n)."""

    def __init__(self, partner: Partner, field: VectorField, t: Time, y: Tensor, **options: Any):
        self.partner, self._begun = partner, False
        super().__init__(field, partner.scheme.tableau, t, y, **options)

    def _try(self, t1: Time) -> Step:
        z, scheme = self.partner.z(), self.partner.scheme
        if self._begun:
            self.f, self._begun = self.field(self.t, z), False
        place = Place(0, self.t, t1, z, self.f)
        k = slopes_of(self.field, scheme, place, range(scheme.last + 1))
        stages, weights = scheme.output(self.t, t1, None)
        y1 = rk_stage(mixed(self.y, z), [k[i] for i in stages], weights)
        return Step(self.field, self.tableau, self.t, t1, self.y, y1, list(k.values()))

    def _next_slope(self, accepted: Step) -> Tensor:
        # That at z, once it is there.
        self.partner.move(self.field, accepted.t, accepted.t1, accepted.y1)
        self._begun = True
        return accepted.k[-1]


class ReversibleSteps:
    """A StepFunction, for steps one after the other."""

    def __init__(self, partner: Partner):
        self.partner = partner

    def __call__(self, field: VectorField, t: Time, t1: Time, y: Tensor, perturb: bool) -> Step:
        z, scheme = self.partner.z(), self.partner.scheme
        y1, k = increment(field, scheme, Place(0, t, t1, z), mixed(y, z))
        self.partner.move(field, t, t1, y1)
        return Step(field, scheme.tableau, t, t1, y, y1, list(k.values()))
