"""One adaptive step over fixed memory, in pieces that a CUDA graph can capture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastnode import extension
from fastnode.engines.native import joint as native
from fastnode.problem.ivp import VectorField
from fastnode.tableaus import Tableau

#: Steps of one launch where CUDA has no conditional nodes.
STEPS = 8
#: Most bytes of states, and most steps, that a plan records before the host reads them.
STATE_BYTES, MAX_RECORDS = 2**28, 2**16


@dataclass(frozen=True)
class Shape:
    """The constants of a solve that its CUDA graph depends on, besides field and state."""

    tableau: Tableau
    control: tuple[float, ...]
    rtol: tuple[float, ...]
    atol: tuple[float, ...]
    sizes: tuple[int, ...]
    count: int
    max_num_steps: int
    together: bool
    keeps_starts: bool
    stiffness: Any
    chooses_first: bool


class Program:
    """The pieces of a solve over fixed memory, as functions to capture."""

    def __init__(self, field: VectorField, func: Callable[[], Any], y0: Tensor, shape: Shape):
        bytes_each = max(1, y0.nbytes) if shape.keeps_starts else 1
        capacity = min(MAX_RECORDS, max(16, STATE_BYTES // bytes_each))
        self.shape, self.func = shape, func
        # For its checks only; with func it would keep that alive.
        shared = field.warn_of_cast
        self.form = VectorField(None, field.layout, y0, field.direction, (), shared)  # pyright: ignore
        self.args = [x.detach().clone() if isinstance(x, Tensor) else x for x in field.args]
        self.step = extension.native().GraphStep(
            y0.detach().clone(memory_format=torch.contiguous_format),
            native.compiled(shape.tableau),
            shape.control,
            shape.sizes,
            shape.rtol,
            shape.atol,
            shape.count,
            shape.max_num_steps,
            shape.together,
            capacity,
            shape.keeps_starts,
            shape.stiffness,
        )
        self.capacity = capacity
        self.times = self.step.times.unbind()
        self.copies = False

    @property
    def evaluations(self) -> tuple[int, int]:
        """Of the start, and of each step."""
        return 1 + self.shape.chooses_first, len(self.times) - 1

    def evaluate(self, i: int, state: Tensor) -> Tensor:
        result = self.func()(self.times[i], self.form.layout.unpack(state), *self.args)
        derivative = self.form.accept(result).detach().resolve_conj().resolve_neg().contiguous()
        return derivative.clone() if self.copies else derivative

    def first(self) -> None:
        step = self.step
        step.f.copy_(self.evaluate(0, step.y))
        if self.shape.chooses_first:
            step.choose_first(self.evaluate(1, step.try_first()))
        step.begin()

    def body(self) -> None:
        step, tableau = self.step, self.shape.tableau
        k, y1 = [step.f], step.y
        for i in range(1, len(self.times)):
            state = step.stage(k, i)
            k.append(self.evaluate(i, state))
            if i == len(tableau.a) - 1:
                y1 = state if tableau.fsal else step.solution(k)
        step.conclude(k, y1)
        step.commit(k, y1)

    def several(self) -> None:
        for _ in range(STEPS):
            self.body()
