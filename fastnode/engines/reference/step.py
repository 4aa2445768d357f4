"""One step in pure PyTorch, differentiable by autograd, and its dense output.

Times are Python floats, or 0-dim tensors where the caller wants their gradients; rk_stage then uses
plain tensor arithmetic, which autograd differentiates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from fastnode.ops.rk_stage import rk_stage
from fastnode.problem.ivp import Time, VectorField
from fastnode.tableaus import Tableau, Weights


def combine(y: Tensor, k: Sequence[Tensor], h: Time, weights: Weights) -> Tensor:
    """y + h sum_j w_j k_j."""
    return rk_stage(y, [k[j] for j in weights.stages], [h * w for w in weights.values])


@dataclass(eq=False)
class Step:
    """A step from (t, y) to (t1, y1).

    ``k`` are the stage derivatives of an explicit Runge-Kutta method; for other methods it holds
    the derivative at (t, y), if they evaluate it, and ``tableau`` is None. ``error`` is the norm of
    the local error relative to the tolerances, where there is an estimate.
    """

    field: VectorField
    tableau: Tableau | None
    t: Time
    t1: Time
    y: Tensor
    y1: Tensor
    k: list[Tensor]
    error: float | None = None

    def at(self, t: Time) -> Tensor:
        """Dense output of the method itself at a time inside the step."""
        if isinstance(t, float) and t == self.t1:
            return self.y1
        assert self.tableau is not None
        h = self.t1 - self.t
        x = (t - self.t) / h
        rows = self.tableau.dense_weights
        # Further stages are evaluated once, by the first output time inside the step.
        done = len(self.k) - len(self.tableau.a)
        for c, weights in self.tableau.further_stages[done:]:
            self.k.append(self.field(self.t + c * h, combine(self.y, self.k, h, weights)))
        derivatives = [self.k[i] for i, _ in rows]
        return rk_stage(self.y, derivatives, [h * polynomial(row, x) for _, row in rows])


def polynomial(coefficients: Sequence[float], x: Time) -> Time:
    """sum_p coefficients_p x^(p + 1)."""
    total = coefficients[-1] * x
    for coefficient in reversed(coefficients[:-1]):
        total = (total + coefficient) * x
    return total


def take_step(
    field: VectorField,
    tableau: Tableau,
    t: Time,
    t1: Time,
    y: Tensor,
    f: Tensor,
    perturb: bool,
) -> Step:
    """One step of a method. ``f`` is the field at (t, y); ``perturb`` has stages at the end of the
    step evaluated just before it, on the near side of a jump there."""
    h = t1 - t
    k = [f]
    stage = y
    for c, weights in zip(tableau.stage_times[1:], tableau.stage_weights[1:], strict=True):
        stage = combine(y, k, h, weights)
        k.append(field(t1, stage, -1 if perturb else 0) if c == 1 else field(t + c * h, stage))
    y1 = stage if tableau.fsal else combine(y, k, h, tableau.solution_weights)
    return Step(field, tableau, t, t1, y, y1, k)


#: (field, t, t1, y, perturb) -> a step of a fixed-step method; one for each solve, as a multistep
#: method keeps earlier steps.
StepFunction = Callable[[VectorField, Time, Time, Tensor, bool], Step]


@dataclass(frozen=True, eq=False)
class ExplicitSteps:
    """Steps of an explicit Runge-Kutta method."""

    tableau: Tableau

    def __call__(self, field: VectorField, t: Time, t1: Time, y: Tensor, perturb: bool) -> Step:
        return take_step(field, self.tableau, t, t1, y, field(t, y, int(perturb)), perturb)
