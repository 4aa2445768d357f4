"""Solves of generated fields: the form in which they see a state, and their formulas by torch.

A generated field sees rows [B, D], in which the tensors of a tuple lie side by side, or one tensor
[B, ...] as it is. What a solve needs beyond numbers, gradients that have gradients, is computed by
calling the module that the code was made from.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastnode.engines.held_values import Place, changed
from fastnode.problem.batch import SampleLayout, SampleProblem
from fastnode.problem.ivp import Problem, Time

#: (module, t, rows, the tensors that the code reads) to the derivative, in rows.
Evaluate = Callable[[nn.Module, Tensor, Tensor, Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Form:
    """How a field is called: the form of a sample, None for a state that is one tensor as it is;
    and further arguments."""

    layout: SampleLayout | None = None
    args: tuple[Any, ...] = ()


#: Of a state that is one tensor, without further arguments.
WHOLE = Form()


def joint_form(problem: Problem) -> Form | None:
    """None for a tuple whose tensors have no common first dimension."""
    shapes = problem.layout.shapes
    if shapes is None:
        return Form(None, problem.args) if problem.args else WHOLE
    if any(not shape for shape in shapes) or len({shape[0] for shape in shapes}) > 1:
        return None
    return Form(SampleLayout(tuple(shape[1:] for shape in shapes), True), problem.args)


def sample_form(problem: SampleProblem) -> Form | None:
    """None if an argument belongs to the samples, as its first dimension says."""
    layout, batch = problem.field.layout, problem.y0.shape[0]
    if any(isinstance(x, Tensor) and x.dim() > 0 and x.shape[0] == batch for x in problem.args):
        return None
    if not layout.is_tuple and len(layout.shapes[0]) == 1:
        return Form(None, problem.args) if problem.args else WHOLE
    return Form(layout, problem.args)


def rows(problem: Problem, form: Form) -> Tensor:
    """The packed state of a tuple, [numbers], as rows [B, D]."""
    assert form.layout is not None
    return form.layout.pack(problem.layout.unpack(problem.y0))


def flat(ys: Tensor, form: Form) -> Tensor:
    """The inverse of ``rows``, dimensions in front of rows staying there."""
    assert form.layout is not None
    parts = ys.split(form.layout.sizes, dim=-1)
    return torch.cat([x.flatten(-2) for x in parts], dim=-1)


def moved_time(t: Time, dtype: torch.dtype, side: int, direction: float) -> Tensor:
    """t as a field is given it, or the number beside it: the gradient of t stays as it is."""
    time = torch.as_tensor(t, dtype=torch.float64).to(dtype)
    if not side:
        return time
    fixed = time.detach()
    end = torch.full_like(fixed, side * direction * float("inf"))
    return time + (torch.nextafter(fixed, end) - fixed)


@dataclass(frozen=True, eq=False)
class Formulas:
    """What generated code computes, by torch: made of a module, which must not change."""

    evaluate: Evaluate
    fixed: list[Place]


#: For each module its formulas by the number of the code, as long as the module lives.
_formulas: weakref.WeakKeyDictionary[nn.Module, dict[int, Formulas]] = weakref.WeakKeyDictionary()
_modules: dict[int, weakref.ref[nn.Module]] = {}


def keep_formulas(number: int, module: nn.Module, formulas: Formulas) -> None:
    """``formulas`` must not hold the module."""
    _formulas.setdefault(module, {})[number] = formulas
    _modules[number] = weakref.ref(module)


class GeneratedField:
    """A generated field as the engines call one: t a number, or one for each row of y.

    Raises:
        RuntimeError: the module that it was made from has changed or is gone.
    """

    def __init__(self, number: int, inputs: Sequence[Tensor], forward: bool = True):
        module = _modules[number]()
        formulas = None if module is None else _formulas[module][number]
        if module is None or formulas is None or changed(formulas.fixed):
            raise RuntimeError(
                "gradients of a gradient of a compiled field need its module, which has changed "
                "or is gone since the solve"
            )
        self.module, self.formulas, self.inputs = module, formulas, inputs
        self.direction = 1.0 if forward else -1.0

    def __call__(self, t: Time, y: Tensor, side: int = 0) -> Tensor:
        time = moved_time(t, y.dtype, side, self.direction)
        if time.dim() == 0:
            return self._evaluated(time, y)
        # Code was made for one time; the module may know no times of several samples.
        return torch.cat([self._evaluated(time[i], y[i : i + 1]) for i in range(len(time))])

    def _evaluated(self, t: Tensor, y: Tensor) -> Tensor:
        return self.formulas.evaluate(self.module, t, y, self.inputs)
