"""One step of an explicit Runge-Kutta method, and what transposes it.

A step from (t, y) to t1 = t + h is a list of stages and of outputs that are linear in them,

    Y_i = y + h sum_j a_ij k_j,   k_i = f(t + c_i h, Y_i),   out_o = y + sum_i w_oi k_i,

where the outputs are the state at t1 and at any times inside. With g_o the cotangents of the
outputs, its transpose is, from the last stage to the first,

    lambda_i = sum_o w_oi g_o + h sum_j a_ji mu_j,   mu_i = (df/dy at Y_i)^T lambda_i,
    y's cotangent = sum_o g_o + sum_i mu_i.

Source: E. Hairer, C. Lubich, G. Wanner, Geometric Numerical Integration, 2nd edition, section
VI.1.2; W. W. Hager, Runge-Kutta methods in optimal control, Numer. Math. 87 (2000).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from fastnode.engines.reference.step import polynomial
from fastnode.ops.rk_adjoint import rk_adjoint
from fastnode.ops.rk_stage import rk_stage
from fastnode.problem.ivp import Time, VectorField, to_float
from fastnode.tableaus import Tableau, Weights

#: Called with the number of a stage right before the field is evaluated for it.
Before = Callable[[int], None]


def no_call(stage: int) -> None:
    """A ``Before`` that does nothing."""


@dataclass(frozen=True)
class Scheme:
    """What the steps of one solve have in common.

    ``inside`` is how outputs inside a step are made: "dense" by the method's own dense output,
    or "cubic". ``perturb`` has stages at the end of a step evaluated just before it.
    """

    tableau: Tableau
    inside: str
    perturb: bool

    @property
    def adaptive(self) -> bool:
        return self.inside == "dense"

    @cached_property
    def carries(self) -> bool:
        """Whether a step begins with the last derivative of the step before, which was not
        evaluated at
        the state between them."""
        return self.adaptive and not self.tableau.fsal

    @property
    def last(self) -> int:
        return len(self.tableau.a) - 1

    @cached_property
    def rows(self) -> list[Weights]:
        """Weights of each stage, those that only outputs inside a step need included."""
        rows = list(self.tableau.stage_weights)
        if self.inside == "dense":
            return rows + [weights for _, weights in self.tableau.further_stages]
        return [*rows, self.tableau.solution_weights]

    def time(self, i: int, t: Time, t1: Time) -> Time:
        if i == 0:
            return t
        if i <= self.last:
            c = self.tableau.stage_times[i]
        else:
            c = 1.0 if not self.adaptive else self.tableau.further_stages[i - self.last - 1][0]
        return t1 if c == 1 and (i <= self.last or not self.adaptive) else t + c * (t1 - t)

    def side(self, i: int, n: int) -> int:
        """On which side of its time stage i of step n is evaluated (VectorField)."""
        if not self.perturb or i > self.last:
            return 0
        if i == 0:
            # An adaptive method takes over the derivative from the end of the step before.
            return (-1 if n else 0) if self.adaptive else 1
        return -1 if self.tableau.stage_times[i] == 1 else 0

    def output(self, t: Time, t1: Time, target: Time | None) -> tuple[list[int], list[Time]]:
        """Stages and weights of the output at ``target``, None for the state at t1."""
        h = t1 - t
        b = self.tableau.solution_weights
        whole = [h * w for w in b.values]
        # At the end of the step only the polynomial has a derivative with respect to the target.
        if target is None or (not isinstance(target, Tensor) and target == to_float(t1)):
            return list(b.stages), whole
        x = (target - t) / h
        if self.inside == "dense":
            rows = self.tableau.dense_weights
            return [i for i, _ in rows], [h * polynomial(row, x) for _, row in rows]
        rise, square = x * x * (3 - 2 * x), x * (1 - x)
        ends = [h * square * (1 - x), -h * square * x]
        return [*b.stages, 0, self.last + 1], [*(rise * w for w in whole), *ends]

    def needed(self, stages: Sequence[int]) -> list[int]:
        """The stages on which any of ``stages`` depends, in the order of evaluation."""
        found = set(stages)
        for i in range(len(self.rows) - 1, -1, -1):
            if i in found:
                found.update(self.rows[i].stages)
        return sorted(found)


@dataclass(frozen=True, eq=False)
class StepStart:
    """Step n from (t, y) to t1; ``f`` is its first derivative, if the method carries it over."""

    n: int
    t: Time
    t1: Time
    y: Tensor
    f: Tensor | None = None


def derivatives_of(
    field: VectorField,
    scheme: Scheme,
    start: StepStart,
    stages: Sequence[int],
    before: Before = no_call,
) -> dict[int, Tensor]:
    """The derivatives of ``stages`` and of those on which they depend."""
    t, t1, y = start.t, start.t1, start.y
    k: dict[int, Tensor] = {}
    for i in scheme.needed(stages):
        if i == 0 and start.f is not None:
            k[0] = start.f
            continue
        row = scheme.rows[i]
        weights = [(t1 - t) * w for w in row.values]
        state = rk_stage(y, [k[j] for j in row.stages], weights) if i else y
        before(i)
        k[i] = field(scheme.time(i, t, t1), state, scheme.side(i, start.n))
    return k


def take(
    field: VectorField,
    scheme: Scheme,
    start: StepStart,
    targets: Sequence[Time | None],
    before: Before = no_call,
) -> list[Tensor]:
    """The outputs at ``targets`` as autograd sees them, and the derivative that is carried on."""
    outputs = [scheme.output(start.t, start.t1, target) for target in targets]
    carried = [scheme.last] if scheme.carries else []
    stages = [*carried, *(i for stages, _ in outputs for i in stages)]
    k = derivatives_of(field, scheme, start, stages, before)
    values = [rk_stage(start.y, [k[i] for i in stages], weights) for stages, weights in outputs]
    return values + [k[i] for i in carried]


class Gradients:
    """Sums of the gradients of tensors, added up in place.

    Attributes:
        sums: one for each of the tensors.
        wanted: those of the tensors that require a gradient; a parameter that was frozen since the
            forward pass does not, and gets none, as by backprop.
    """

    def __init__(self, tensors: Sequence[Tensor]):
        self.sums = [torch.zeros_like(x) for x in tensors]
        self.wanted = [x for x in tensors if x.requires_grad]
        self._into = [s for s, x in zip(self.sums, tensors, strict=True) if x.requires_grad]

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Adds those of ``wanted``."""
        pairs = [(s, g) for s, g in zip(self._into, gradients, strict=True) if g is not None]
        if pairs:
            sums, terms = zip(*pairs, strict=True)
            for_each: Any = torch
            for_each._foreach_add_(list(sums), list(terms))


#: For each stage the tensors, with their weights, of which its derivative's cotangent is the sum.
Terms = dict[int, list[tuple[float, Tensor]]]


def seeded(
    scheme: Scheme,
    start: StepStart,
    seeds: Sequence[tuple[Time | None, Tensor]],
    carried: Tensor | None = None,
    sign: float = 1.0,
) -> Terms:
    """What the cotangents of outputs, (target, sign * cotangent), and of the derivative that is
    carried
    on put on the stages. The times must be numbers."""
    terms: Terms = {}
    for target, g in seeds:
        for i, w in zip(*scheme.output(start.t, start.t1, target), strict=True):
            terms.setdefault(i, []).append((sign * w, g))  # pyright: ignore[reportArgumentType]
    if carried is not None:
        terms.setdefault(scheme.last, []).append((1.0, carried))
    return terms


def transpose(
    field: VectorField,
    scheme: Scheme,
    start: StepStart,
    terms: Terms,
    direct: Sequence[Tensor],
    sums: Gradients,
    before: Before = no_call,
    k: dict[int, Tensor] | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """The cotangents of y and of ``start.f``; those of ``sums.wanted`` are added to it.

    Args:
        terms: what the outputs put on the stages (``seeded``); emptied.
        direct: what they put on y directly.
        k: derivatives of all needed stages but perhaps the last; emptied. Where they are known the
        graph
            of one stage is kept at a time, otherwise those of all.
    """
    t, t1, y = start.t, start.t1, start.y
    h = t1 - t
    order = scheme.needed(list(terms))
    one_by_one, k = k is not None, {} if k is None else k
    graphs: dict[int, tuple[Tensor, Any]] = {}

    def record(i: int) -> Tensor:
        row = scheme.rows[i]
        state = rk_stage(y, [k[j] for j in row.stages], [h * w for w in row.values]) if i else y
        leaf = state.detach().requires_grad_()
        if i == order[-1]:
            # The graphs are all that is needed of the derivatives from here on.
            for j in [j for j in k if not one_by_one or j >= i]:
                del k[j]
        before(i)
        with torch.enable_grad():
            derivative = field(scheme.time(i, t, t1), leaf, scheme.side(i, start.n))
        if derivative.requires_grad:
            graphs[i] = leaf, get_gradient_edge(derivative)
        return derivative.detach()

    if not one_by_one:
        for i in order:
            k[i] = start.f if i == 0 and start.f is not None else record(i)
    first, mus = None, []
    for i in reversed(order):
        k.pop(i, None)
        if i not in terms:
            continue
        weights, cotangents = zip(*terms.pop(i), strict=True)
        cotangent = rk_adjoint(cotangents, weights)
        if i == 0 and start.f is not None:
            first = cotangent
            continue
        if one_by_one:
            record(i)
        if i not in graphs:
            continue
        leaf, edge = graphs.pop(i)
        mu, *rest = torch.autograd.grad(
            [edge], [leaf, *sums.wanted], [cotangent], allow_unused=True
        )
        del leaf, edge, cotangent
        sums.add(rest)
        if mu is None:
            continue
        mus.append(mu)
        for j, w in zip(scheme.rows[i].stages, scheme.rows[i].values, strict=True):
            terms.setdefault(j, []).append((h * w, mu))  # pyright: ignore[reportArgumentType]
    parts = [*direct, *mus]
    if not parts:
        return None, first
    return rk_adjoint(parts, [1.0] * len(parts)), first
