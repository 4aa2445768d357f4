"""An estimate of stiffness that costs no evaluation.

Two stages of a step at the same time but with different states g_i and g_j show how fast the
field changes with the state: |k_i - k_j| / |g_i - g_j| approximates the largest eigenvalue of
df/dy. Times h over the length of the method's stability region it is near 1 where stability, not
accuracy, limits the step.

Sources: L. F. Shampine, Stiffness and nonstiff differential equation solvers, II, ACM Trans.
Math. Softw. 3 (1977); E. Hairer, G. Wanner, Solving Ordinary Differential Equations II, section
IV.2, equation (2.26).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastnode.control.norms import as_number
from fastnode.ops.dispatch import transformed
from fastnode.ops.rk_error import rk_error
from fastnode.tableaus import Tableau, Weights


class Stiffness:
    """h |lambda| over the length of a method's stability region, from the stages of a step.

    It uses the last two stages at the end of the step. NaN for a method without two such stages or
    with unknown stability region; 0 where the field did not change.
    """

    def __init__(self, tableau: Tableau | None):
        self.known, self.stability = False, math.nan
        if tableau is None or tableau.stability is None:
            return
        ends = [i for i, c in enumerate(tableau.c) if c == 1]
        if len(ends) >= 2:
            self.known, self.stability = True, tableau.stability
            j, i = ends[-2:]
            rows = zip(tableau.a[i], (*tableau.a[j], *(0,) * (i - j)), strict=True)
            differences = [(n, float(a - b)) for n, (a, b) in enumerate(rows) if a != b]
            #: Weights of k_i - k_j and of (g_i - g_j) / h in the stages.
            self.derivatives = Weights((i, j), (1.0, -1.0))
            self.states = Weights(*zip(*differences, strict=True))

    @property
    def weights(self) -> tuple[Weights, Weights, float] | None:
        """What the C++ loop needs to estimate it."""
        return (self.derivatives, self.states, self.stability) if self.known else None

    @torch.no_grad()
    def per_sample(self, k: Sequence[Tensor]) -> Tensor:
        """For each sample, [b], from stage derivatives [b, D]."""
        if not self.known:
            return torch.full((k[0].shape[0],), math.nan, device=k[0].device)
        derivatives, states = (
            rk_error(k[0], k[0], [k[j] for j in w.stages], w.values, 0.0, 1.0, per_sample=True)
            for w in (self.derivatives, self.states)
        )
        # |g_i - g_j| is h times the second norm: the size of the step cancels.
        return torch.where(derivatives == 0, 0.0, derivatives / states / self.stability)

    @torch.no_grad()
    def __call__(self, k: Sequence[Tensor]) -> float | Tensor:
        """For the whole state; on a GPU a 0-dim tensor, so that the host need not wait."""
        if not self.known:
            return math.nan
        norms = [
            rk_error(k[0], k[0], [k[j] for j in w.stages], w.values, 0.0, 1.0)
            for w in (self.derivatives, self.states)
        ]
        if k[0].is_cuda and not transformed():
            return torch.where(norms[0] == 0, 0.0, norms[0] / norms[1] / self.stability)
        derivatives, states = map(as_number, norms)
        return derivatives and (derivatives / states / self.stability if states else math.inf)
