"""Step-size control: which steps are accepted and how long the next one is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fastnode.errors import NonFiniteState
from fastnode.norms import ErrorNorm


@dataclass(frozen=True)
class IController:
    """The elementary controller, with torchdiffeq's limits.

    ``h_next = h clip(safety / ratio^(1/order), dfactor, ifactor)``, never shrinking after an
    accepted step. Source: E. Hairer, S. P. Norsett, G. Wanner, Solving Ordinary Differential
    Equations I, 2nd edition, section II.4, equation (4.13).

    Args:
        order: order of the method.
        safety, ifactor, dfactor: safety factor, largest growth, largest shrinkage.
        min_step, max_step: limits for the size of a step; a step at the lower one is accepted.
    """

    order: int
    safety: float = 0.9
    ifactor: float = 10.0
    dfactor: float = 0.2
    min_step: float = 0.0
    max_step: float = math.inf

    def clip(self, h: float) -> float:
        return min(max(h, self.min_step), self.max_step)

    def accepts(self, h: float, ratio: float) -> bool:
        return ratio <= 1 or (h <= self.min_step and math.isfinite(ratio))

    def next_step(self, h: float, ratio: float) -> float:
        """Size of the step after one of size h whose error came out as ``ratio`` tolerances."""
        if not math.isfinite(ratio):
            factor = self.dfactor
        elif ratio == 0:
            factor = self.ifactor
        else:
            floor = 1.0 if ratio < 1 else self.dfactor
            factor = min(self.ifactor, max(self.safety * ratio ** (-1 / self.order), floor))
        return self.clip(h * factor)


def initial_step(
    field: Callable[[float, Tensor], Tensor],
    t: float,
    y: Tensor,
    f: Tensor,
    span: float,
    order: int,
    norm: ErrorNorm,
) -> float:
    """Size of a first step from scratch, at the cost of one evaluation within ``span``.

    Source: Hairer, Norsett, Wanner, section II.4, algorithm "starting step size", with the order of
    the method in place of the order of its error estimate, as torchdiffeq has it. ``span`` is the
    signed length of the interval.
    """
    d0, d1 = norm.size(y, y), norm.size(f, y)
    if not (math.isfinite(d0) and math.isfinite(d1)):
        raise NonFiniteState(f"the state or the vector field is not finite at t = {t:g}", time=t)
    h0 = 1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1
    h0 = min(h0, abs(span))
    signed = math.copysign(h0, span)
    trial = field(t + signed, y + signed * f)
    d2 = norm.size(trial - f, y) / h0
    if not math.isfinite(d2):
        return h0
    if d1 <= 1e-15 and d2 <= 1e-15:
        h1 = max(1e-6, h0 * 1e-3)
    else:
        h1 = (0.01 / max(d1, d2)) ** (1 / order)
    return min(100 * h0, h1)
