"""Adams steps in pure PyTorch: multistep methods, which use the derivatives of earlier steps."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from fastnode.control.norms import ErrorNorm
from fastnode.engines.reference.step import Step, take_step
from fastnode.ops.dispatch import transformed
from fastnode.ops.rk_stage import rk_stage
from fastnode.problem.ivp import Time, VectorField, to_float
from fastnode.tableaus import RK4
from fastnode.tableaus.adams import adams_bashforth, adams_moulton, uneven_weights
from fastnode.torch_support.warn import warn

#: Fewest derivatives that a multistep step uses; until there are so many, steps are those of rk4.
FEWEST = 3


class AdamsSteps:
    """Steps of an Adams method, for one solve: it keeps the derivatives of earlier steps.

    As in torchdiffeq, ``max_order - 1`` of them are kept: the explicit method (Adams-Bashforth) is
    of order ``max_order - 1`` and the implicit one (Adams-Bashforth-Moulton) of order
    ``max_order``. The order grows with each step from the fourth on; the first steps are those of
    rk4. Weights are those of the steps' own lengths, so the order also holds on uneven grids.

    Args:
        max_order: 1 to 12; below 4 every step is one of rk4.
        corrector: None for the explicit method, otherwise the norm in which two iterates of the
            increment are compared; 1 is just not converged.
        max_iters: most evaluations of the corrector in a step.
    """

    def __init__(self, max_order: int, corrector: ErrorNorm | None = None, max_iters: int = 4):
        self.corrector, self.max_iters = corrector, max_iters
        self.kept = max(max_order - 1, 1)
        self._past: deque[tuple[Time, Tensor]] = deque(maxlen=self.kept)

    def __call__(self, field: VectorField, t: Time, t1: Time, y: Tensor, perturb: bool) -> Step:
        f = field(t, y, int(perturb))
        self._past.appendleft((t, f))
        if len(self._past) < FEWEST:
            return take_step(field, RK4, t, t1, y, f, perturb)
        h = t1 - t
        times, derivatives = (
            [past for past, _ in self._past],
            [derivative for _, derivative in self._past],
        )
        zero = torch.zeros_like(y)
        rise = rk_stage(zero, derivatives, [h * w for w in _weights(t, h, times, implicit=False)])
        if self.corrector is not None:
            rise = self._correct(field, t1, y, h, times, derivatives, rise, perturb)
        return Step(field, None, t, t1, y, y + rise, [f])

    def _correct(
        self,
        field: VectorField,
        t1: Time,
        y: Tensor,
        h: Time,
        times: list[Time],
        derivatives: list[Tensor],
        rise: Tensor,
        perturb: bool,
    ) -> Tensor:
        assert self.corrector is not None
        newest, *others = [h * w for w in _weights(times[0], h, times, implicit=True)]
        known = rk_stage(torch.zeros_like(y), derivatives, others)
        # Under transforms no decision may depend on values: all iterations are done.
        blind = transformed()
        for _ in range(self.max_iters):
            before = rise
            rise = rk_stage(known, [field(t1, y + before, -int(perturb))], [newest])
            if not blind and self.corrector(before, rise, [rise - before], [1.0]) < 1:
                return rise
        if blind:
            return rise
        self.warn_unconverged()
        self._past.pop()
        return rise

    def warn_unconverged(self) -> None:
        # The same text at every step, so that Python shows it once.
        warn(
            f"the corrector did not converge in {self.max_iters} iterations (max_iters): the "
            "solution may be wrong; a smaller step or a larger tolerance helps"
        )


def _weights(t: Time, h: Time, times: list[Time], implicit: bool) -> list[float] | list[Tensor]:
    if isinstance(h, torch.Tensor):
        ends = [torch.ones_like(h)] if implicit else []
        nodes = torch.stack([*ends, *((past - t) / h for past in times)])
        return list(uneven_weights(nodes).unbind())
    length, now = to_float(h), to_float(t)
    rounding = 1e-9 + 1e-15 * abs(now / length)
    nodes = [(to_float(past) - now) / length for past in times]
    if all(abs(node + j) <= rounding * (j + 1) for j, node in enumerate(nodes)):
        exact = adams_moulton(len(times) + 1) if implicit else adams_bashforth(len(times))
        return [float(w) for w in exact]
    ends = [1.0] if implicit else []
    return uneven_weights(torch.tensor([*ends, *nodes], dtype=torch.float64)).tolist()
