"""Implicit Runge-Kutta steps in pure PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from fastnode.engines.reference.newton import (
    ImplicitSlopes,
    NewtonSolver,
    StageEquations,
    solve_transformed,
)
from fastnode.engines.reference.step import Step, combine
from fastnode.errors import NonFiniteState, StagesNotSolved
from fastnode.ops.dispatch import transformed
from fastnode.problem.ivp import Time, VectorField, to_float
from fastnode.tableaus import ImplicitTableau, Weights


class ImplicitSteps:
    """Steps of an implicit method, for one solve: it keeps stage derivatives and Newton matrices.

    As in torchdiffeq, each step evaluates the field at its beginning; Newton's method starts there.
    Methods whose stages do not depend on later ones are solved stage by stage, the others at once.
    Gradients are those of the exact solution of the stage equations (``ImplicitSlopes``), first
    derivatives only; so are those of torch.func transforms, where a step that Newton's method does
    not solve is NaN instead of an error.

    Args:
        tableau: the method.
        max_iters: most Newton iterations for each system.

    Raises (when called):
        StagesNotSolved: Newton's method does not converge to the precision of the state.
        NonFiniteState: the vector field is not finite at a stage.
    """

    def __init__(self, tableau: ImplicitTableau, max_iters: int):
        self.tableau = tableau
        stages = range(len(tableau.b))
        groups = [[i] for i in stages] if tableau.diagonal else [list(stages)]
        a = [[float(value) for value in row] for row in tableau.a]
        self._a = a
        self._groups = [
            (group, NewtonSolver([[a[i][j] for j in group] for i in group], max_iters))
            for group in groups
        ]
        self._last: tuple[list[tuple[Time, int]], list[Tensor]] = [], []

    def stages(self, h: Time, y: Tensor) -> list[tuple[float, Time, int, Tensor]]:
        """Of the last step, which began at y: (weight in the solution, time, side of it, state) of
        each stage."""
        points, k = self._last
        rows = zip(self.tableau.b, points, self._a, strict=True)
        return [(float(b), *point, combine(y, k, h, _nonzero(a))) for b, point, a in rows]

    def __call__(self, field: VectorField, t: Time, t1: Time, y: Tensor, perturb: bool) -> Step:
        h = t1 - t
        points = [self._point(c, t, t1, perturb) for c in map(float, self.tableau.c)]
        k: list[Tensor] = []
        f = guess = field(t, y, int(perturb))
        # A time is a tensor only where it needs a gradient.
        wanted = f.requires_grad or y.requires_grad or isinstance(t, torch.Tensor)
        for group, solver in self._groups:
            if group == [0] and self._a[0][0] == 0:
                k.append(f)
                continue
            bases = [combine(y, k, h, _nonzero(self._a[i][: len(k)])) for i in group]
            chosen = [points[i] for i in group]
            if y.numel() == 0:
                pairs = zip(chosen, bases, strict=True)
                k += [field(time, base, side) for (time, side), base in pairs]
            else:
                k += self._solve(field, solver, chosen, bases, t, h, y, guess.detach(), wanted)
            guess = k[-1]
        y1 = combine(y, k, h, _nonzero([float(b) for b in self.tableau.b]))
        self._last = points, k
        return Step(field, None, t, t1, y, y1, [f])

    def _point(self, c: float, t: Time, t1: Time, perturb: bool) -> tuple[Time, int]:
        if c == 0:
            return t, int(perturb)
        return (t1, -int(perturb)) if c == 1 else (t + c * (t1 - t), 0)

    def _solve(
        self,
        field: VectorField,
        solver: NewtonSolver,
        points: list[tuple[Time, int]],
        bases: list[Tensor],
        t: Time,
        h: Time,
        y: Tensor,
        guess: Tensor,
        differentiable: bool,
    ) -> list[Tensor]:
        wide = torch.promote_types(field.time_dtype, torch.float32)
        real = [torch.view_as_real(base) if base.is_complex() else base for base in bases]
        guess = torch.view_as_real(guess) if guess.is_complex() else guess
        if transformed():
            equations = StageEquations(field, points, real, h, solver.a)
            like = real[0].reshape(1, -1).to(wide).expand(len(points), -1)
            eps = torch.finfo(field.time_dtype).eps
            k = solve_transformed(equations, like, y.abs().amax(), eps)
            return self._shaped(k, real[0], y)
        width = to_float(h)
        with torch.no_grad():
            plain = StageEquations(
                field,
                [(to_float(time), side) for time, side in points],
                [base.detach() for base in real],
                width,
                solver.a,
            )
            start = guess.reshape(1, -1).to(wide).repeat(len(points), 1)
            size = y.abs().max().item() if y.numel() else 0.0
            begin = to_float(t)
            try:
                eps = torch.finfo(field.time_dtype).eps
                k = solver.solve(plain, width, start, size, eps)
            except NonFiniteState as error:
                message = f"{error}, at t = {begin:g} with h = {width:g}"
                raise NonFiniteState(message, time=begin, step=width) from None
        if k is None:
            raise StagesNotSolved(
                f"the stage equations of {self.tableau.name} were not solved at t = {begin:g} with "
                f"h = {width:g}: Newton's method did not converge in {solver.max_iters} iterations "
                "(max_iters); a smaller step makes it easier",
                time=begin,
                step=width,
            )
        if differentiable and torch.is_grad_enabled():
            leaf = k.clone().requires_grad_()
            image = StageEquations(field, points, real, h, solver.a)(leaf)
            # To autograd, a field that it cannot differentiate is a constant.
            k = ImplicitSlopes.apply(image, leaf) if image.requires_grad else k
            assert isinstance(k, Tensor)
        return self._shaped(k, real[0], y)

    @staticmethod
    def _shaped(k: Tensor, real: Tensor, y: Tensor) -> list[Tensor]:
        shaped = [row.reshape(real.shape).to(real.dtype) for row in k]
        return [torch.view_as_complex(row) if y.is_complex() else row for row in shaped]


def _nonzero(row: list[float]) -> Weights:
    stages = tuple(j for j, value in enumerate(row) if value)
    return Weights(stages, tuple(row[j] for j in stages))
