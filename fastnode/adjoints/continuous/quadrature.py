"""Parameter gradients of the continuous adjoint, integrated beside its Runge-Kutta state.

The adjoint state (y, a) does not depend on the parameter gradient

    g(t) = int a^T df/dp,

so its value at the stages is not needed: each stage adds its integrand, times h b_i, to the value
at the end of the step (and, times h e_i, to its embedded error) and is then discarded. A rejected
step leaves the value at its start unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastnode import extension
from fastnode.control.norms import Tolerance
from fastnode.ops.rk_error import rk_error, scaled_error
from fastnode.tableaus import Tableau, Weights

#: The integrand for each parameter; None where the field does not depend on it.
Integrand = Sequence[Tensor | None]

_START, _IDLE = -2, -1


class Quadrature:
    """The integrals of parameter gradients: ``totals``, one like each of ``params``.

    For an explicit Runge-Kutta method ``follow`` is called once, then for each step ``begin``, one
    ``evaluated`` for each stage, and ``accept`` if it is accepted. Other methods call ``add``.
    """

    def __init__(self, params: Sequence[Tensor]):
        self.totals = [_zeros_like(param) for param in params]
        self._trial: list[Tensor] = []
        self._errors: list[Tensor] | None = None
        self._b: list[float] = []
        self._e: list[float] = []
        self._used: list[bool] = []
        self._reuses_last = False
        self._first: Integrand = ()
        self._kept: Integrand = ()
        self._h = 0.0
        self._fresh = True
        self._stage = _START
        self._fused = fused(self.totals)

    def follow(self, tableau: Tableau, errors: bool) -> None:
        """Integrates over steps of this method; ``errors``: whether their errors are needed."""
        stages = len(tableau.a)
        self._trial = [torch.empty_like(total) for total in self.totals]
        self._errors = [torch.empty_like(total) for total in self.totals] if errors else None
        self._b = _dense(tableau.solution_weights, stages)
        self._e = _dense(tableau.error_weights if errors else None, stages)
        self._used = [bool(b or e) for b, e in zip(self._b, self._e, strict=True)]
        # In an adaptive solve the last stage of a step is the first one of the next.
        self._reuses_last = tableau.error is not None
        self._used[-1] |= self._reuses_last and self._used[0]

    @property
    def measurable(self) -> bool:
        """Whether the attempted step has an error estimate."""
        return self._errors is not None and self._stage >= 0

    def add(self, integrand: Integrand, weight: float) -> None:
        for total, term in zip(self.totals, integrand, strict=True):
            if term is not None:
                total.add_(term, alpha=weight)

    def restart(self) -> None:
        """A new solve begins: its first evaluation is the first stage of its first step."""
        self._stage = _START

    def wants(self) -> bool:
        """Whether the integrand of the next evaluation is used."""
        if self._stage < 0:
            return self._stage == _START and self._used[0]
        return self._used[self._stage]

    def evaluated(self, integrand: Integrand) -> None:
        """Takes the integrand of an evaluation, () if it was not wanted."""
        if self._stage == _START:
            self._first, self._stage = integrand, _IDLE
        elif self._stage >= 0:
            self._add(integrand)
            if self._stage == len(self._b) - 1:
                self._kept = integrand
            self._stage = min(self._stage + 1, len(self._b) - 1)

    def begin(self, h: float) -> None:
        """A step of signed length h is tried."""
        self._h, self._fresh, self._stage = h, True, 0
        if self._reuses_last:
            self._add(self._first)
            self._stage = 1

    def accept(self) -> None:
        """The step is accepted; after a jump its first stage is evaluated once more."""
        if not self._fresh:
            self.totals, self._trial = self._trial, self.totals
            self._fresh = True
        self._first, self._stage = self._kept, _START

    def scaled_errors(self, rtol: Sequence[Tolerance], atol: Sequence[Tolerance]) -> list[Tensor]:
        """The error of the attempted step over its tolerance."""
        return [scaled_error(*each) for each in self._measured(rtol, atol)]

    def error_norm(self, rtol: Sequence[Tolerance], atol: Sequence[Tolerance]) -> float:
        """The largest root mean square of ``scaled_errors``."""
        if self._fused and all(type(each) is float for each in (*rtol, *atol)):
            ends, errors = self._ends
            return extension.native().largest_error(self.totals, ends, errors, rtol, atol)
        norms = [rk_error(*each).double() for each in self._measured(rtol, atol)]
        return torch.stack(norms).max().item() if norms else 0.0

    @property
    def _ends(self) -> tuple[list[Tensor], list[Tensor]]:
        """The values at the end of the attempted step, and their errors."""
        assert self._errors is not None
        if self._fresh:
            # No stage has contributed.
            return self.totals, [error.zero_() for error in self._errors]
        return self._trial, self._errors

    def _measured(self, rtol: Sequence[Tolerance], atol: Sequence[Tolerance]) -> list[Any]:
        rows = zip(self.totals, *self._ends, rtol, atol, strict=True)
        return [(y, y1, [e], [1.0], r, a) for y, y1, e, r, a in rows]

    def _add(self, integrand: Integrand) -> None:
        b, e = self._h * self._b[self._stage], self._h * self._e[self._stage]
        if not (integrand and (b or e)):
            return
        first, self._fresh = self._fresh, False
        add = extension.native().add_stage if self._fused else add_stage_reference
        add(self.totals, self._trial, self._errors or [], integrand, b, e, first)


def fused(tensors: Sequence[Tensor]) -> bool:
    """Whether the kernels take these."""
    return extension.AVAILABLE and all(
        type(x) is Tensor and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
        for x in tensors
    )


def add_stage_reference(
    totals: Sequence[Tensor],
    trial: Sequence[Tensor],
    errors: Sequence[Tensor],
    terms: Integrand,
    b: float,
    e: float,
    first: bool,
) -> None:
    """Adds b terms to ``trial`` and e terms to ``errors``, which may be empty; at the first stage
    of a step these begin with ``totals`` and zero, whatever they were."""
    if first:
        for sum_, total in zip(trial, totals, strict=True):
            sum_.copy_(total)
        for error in errors:
            error.zero_()
    for sums, weight in ((trial, b), (errors, e)):
        for sum_, term in zip(sums, terms, strict=False):
            if term is not None and weight:
                sum_.add_(term, alpha=weight)


def _zeros_like(param: Tensor) -> Tensor:
    # A sum of many small terms, which 16 bits would lose.
    wide = torch.promote_types(param.dtype, torch.float32)
    return torch.zeros_like(param, dtype=wide, memory_format=torch.contiguous_format)


def _dense(weights: Weights | None, stages: int) -> list[float]:
    found = {} if weights is None else dict(zip(weights.stages, weights.values, strict=True))
    return [found.get(i, 0.0) for i in range(stages)]
