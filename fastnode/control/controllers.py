"""Step-size control: which steps are accepted and how long the next one is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fastnode.control.norms import ErrorNorm
from fastnode.errors import not_finite_at_start
from fastnode.ops.rk_stage import rk_stage

#: Near overflow, and at a border beyond which the field is not defined, longer steps are not finite
#: and shorter ones round to y: without this rule the time creeps on in millions of steps while the
#: state stands still. A step is short if it is at most SHORT resolutions of the state's dtype times
#: the longest step tried. Once FUTILE short steps have been accepted after attempts that were not
#: finite, with no longer one between them, the next attempt that is not finite is the last. The
#: same in C++: csrc/step_control/rk_control.h.
SHORT, FUTILE = 64, 16


@dataclass(frozen=True)
class Controller:
    """PID control of the step size with limits for the factor; by default the elementary one.

    With r_n the error of step n over its tolerance and k the order of the method,

        h_next = h clip(safety r_n^(-b1 / k) r_{n-1}^(-b2 / k) r_{n-2}^(-b3 / k), dfactor, ifactor),
        b1 = p + i + d,  b2 = -(p + 2 d),  b3 = d,

    r_{n-1} and r_{n-2} being those of the previous accepted steps. (p, i, d) = (0, 1, 0) is the
    elementary controller I; CONTROLLERS has others. A subclass may override the rules:
    ``next_step`` and ``accepts``, for per-sample solves ``next_steps`` and ``accepted``. The
    reference engine then runs it: the loops in C++ take the numbers and call no method.
    Sources: E. Hairer, S. P. Norsett, G. Wanner, Solving Ordinary Differential Equations I, 2nd
    edition, section II.4, equation (4.13); G. Soederlind, Automatic control and adaptive
    time-stepping, Numer. Algorithms 31 (2002).

    Args:
        safety, ifactor, dfactor: safety factor, largest growth, largest shrinkage.
        min_step, max_step: limits for the size of a step; a step at the lower one is accepted.
        proportional, integral, derivative: p, i and d.
        keeps_accepted: whether the step never shrinks after one that was accepted, as in
            torchdiffeq.

    Raises:
        ValueError: a limit is out of its range.
    """

    safety: float = 0.9
    ifactor: float = 10.0
    dfactor: float = 0.2
    min_step: float = 0.0
    max_step: float = math.inf
    proportional: float = 0.0
    integral: float = 1.0
    derivative: float = 0.0
    keeps_accepted: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.min_step <= self.max_step:
            raise ValueError(
                "min_step and max_step must satisfy 0 <= min_step <= max_step, "
                f"got {self.min_step} and {self.max_step}"
            )
        if not 0 < self.dfactor < 1 <= self.ifactor:
            raise ValueError(
                "dfactor and ifactor must satisfy 0 < dfactor < 1 <= ifactor, "
                f"got {self.dfactor} and {self.ifactor}"
            )
        if not 0 < self.safety <= 1:
            raise ValueError(f"safety must satisfy 0 < safety <= 1, got {self.safety}")

    @property
    def has_own_rules(self) -> bool:
        """Whether it is a subclass, whose methods decide on steps."""
        return type(self) is not Controller

    @property
    def smallest(self) -> float:
        """Smallest factor after an accepted step."""
        return 1.0 if self.keeps_accepted else self.dfactor

    @cached_property
    def exponents(self) -> tuple[float, float, float]:
        p, i, d = self.proportional, self.integral, self.derivative
        return p + i + d, -(p + 2 * d), d

    def clip(self, h: float) -> float:
        return min(max(h, self.min_step), self.max_step)

    def accepts(self, h: float, ratio: float) -> bool:
        """Whether a step of size h, whose error came out as ``ratio`` tolerances, is kept."""
        return ratio <= 1 or (h <= self.min_step and math.isfinite(ratio))

    def next_step(self, h: float, ratio: float, history: tuple[float, float], order: int) -> float:
        """Size of the step after one of size h whose error came out as ``ratio`` tolerances.

        Args:
            h: size of the step tried, positive.
            ratio: its error; more than 1 is too much, and it may be infinite or NaN.
            history: the errors of the two previous accepted steps, the latest first.
            order: order of the method.
        """
        if not math.isfinite(ratio):
            factor = self.dfactor
        elif ratio == 0:
            factor = self.ifactor
        else:
            b1, b2, b3 = self.exponents
            factor = self.safety * ratio ** (-b1 / order)
            if b2 or b3:
                # A step that happened to be nearly exact says nothing about the next.
                before, earlier = (max(r, 1e-4) for r in history)
                factor *= before ** (-b2 / order) * earlier ** (-b3 / order)
            floor = self.smallest if ratio < 1 else self.dfactor
            factor = min(self.ifactor, max(factor, floor))
        return self.clip(h * factor)

    def accepted(self, h: Tensor, ratio: Tensor) -> Tensor:
        """``accepts`` for each entry."""
        return (ratio <= 1) | ((h <= self.min_step) & ratio.isfinite())

    def next_steps(
        self, h: Tensor, ratio: Tensor, history: tuple[Tensor, Tensor], order: int
    ) -> Tensor:
        """``next_step`` for each entry."""
        b1, b2, b3 = self.exponents
        factor = self.safety * ratio ** (-b1 / order)
        if b2 or b3:
            before, earlier = (r.clamp(min=1e-4) for r in history)
            factor = factor * before ** (-b2 / order) * earlier ** (-b3 / order)
        floor = torch.where(ratio < 1, self.smallest, self.dfactor)
        factor = torch.maximum(factor, floor).clamp(max=self.ifactor)
        factor = torch.where(ratio.isfinite(), factor, self.dfactor)
        return (h * factor).clamp(self.min_step, self.max_step)


#: Controllers by name. PI: K. Gustafsson, Control theoretic techniques for stepsize selection in
#: explicit Runge-Kutta methods, ACM Trans. Math. Softw. 17 (1991), with the gains that needed the
#: fewest evaluations on van der Pol equations with mu from 0.1 to 50 at tolerances from 1e-3 to
#: 1e-7 (dopri5 and tsit5).
CONTROLLERS = {
    "I": Controller(),
    "PI": Controller(proportional=0.4, integral=0.6),
    "PID": Controller(proportional=0.3, integral=0.6, derivative=0.05),
}


def find_controller(controller: str | Controller) -> Controller:
    if isinstance(controller, Controller):
        return controller
    if not isinstance(controller, str) or controller not in CONTROLLERS:
        raise ValueError(
            f"controller must be one of {', '.join(CONTROLLERS)} or a Controller, "
            f"got {controller!r}"
        )
    return CONTROLLERS[controller]


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
        not_finite_at_start(t, y, f)
    h0 = 1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1
    h0 = min(h0, abs(span))
    signed = math.copysign(h0, span)
    trial = field(t + signed, rk_stage(y, [f], [signed]))
    d2 = norm(y, y, [trial, f], [1.0, -1.0]) / h0
    if not math.isfinite(d2):
        return h0
    if d1 <= 1e-15 and d2 <= 1e-15:
        h1 = max(1e-6, h0 * 1e-3)
    else:
        h1 = (0.01 / max(d1, d2)) ** (1 / order)
    return min(100 * h0, h1)
