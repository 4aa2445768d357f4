"""Fixed steps as a stepper: the interface of the adaptive one over a given grid."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastnode.engines.step import Step, take_step
from fastnode.errors import MaxStepsExceeded
from fastnode.problem import Time, VectorField, to_float
from fastnode.tableaus import Tableau


class GridStep:
    """A step from (t, y) to (t1, y1), continued inside by the cubic with the values and slopes of
    both ends; the slope at its end is that with which the next step begins."""

    error = float("nan")

    def __init__(self, step: Step, field: VectorField):
        self.t, self.t1, self.y, self.y1, self.k = step.t, step.t1, step.y, step.y1, step.k
        self._step, self._field = step, field
        self._f1: Tensor | None = None

    @property
    def f1(self) -> Tensor:
        if self._f1 is None:
            self._f1 = self._field(self.t1, self.y1)
        return self._f1

    def at(self, t: Time) -> Tensor:
        if to_float(t) == to_float(self.t1):
            return self.y1
        return self._step.cubic_at(t, self.f1)


class GridStepper:
    """Steps of a method from point to point of ``grid``."""

    def __init__(
        self,
        field: VectorField,
        tableau: Tableau,
        y: Tensor,
        grid: Sequence[Time],
        max_num_steps: int,
    ):
        self.field, self.tableau, self.grid = field, tableau, grid
        self.max_num_steps = max_num_steps
        self.t, self.y = grid[0], y
        self.attempts = 0
        self.rejected = 0
        self._last: GridStep | None = None

    def advance(self) -> GridStep:
        """Takes the next step of the grid.

        Raises:
            MaxStepsExceeded: that would be one too many.
        """
        t, t1 = self.t, self.grid[self.attempts + 1]
        if self.attempts >= self.max_num_steps:
            start = to_float(t)
            raise MaxStepsExceeded(
                f"max_num_steps exceeded: {self.attempts} steps taken by t = {start:g}",
                time=start,
                step=to_float(t1) - start,
            )
        self.attempts += 1
        f = self.field(t, self.y) if self._last is None else self._last.f1
        step = take_step(self.field, self.tableau, t, t1, self.y, f, perturb=False)
        self._last = GridStep(step, self.field)
        self.t, self.y = t1, step.y1
        return self._last
