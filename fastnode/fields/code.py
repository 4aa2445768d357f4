"""From a traced field to code that is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastnode import extension
from fastnode.engines.fused import request as fused_request
from fastnode.fields import toolchain
from fastnode.fields.emit_cpp import Target, emit
from fastnode.fields.ir import (
    PARAMETERS,
    SAMPLE,
    TIME,
    Buffer,
    Convolve,
    Outer,
    Product,
    Program,
    View,
)
from fastnode.fields.layout import arrange
from fastnode.fields.lower import Lowering
from fastnode.fields.plan import place_results, plan
from fastnode.fields.trace import Traced

__all__ = ["Target", "build", "finished", "held_views", "load", "multiplications", "sums_of"]


def build(
    traced: Traced,
    inputs: Sequence[Tensor],
    differentiable: int,
    shape: torch.Size,
    ends: Sequence[int],
    target: Target,
    gradients: bool,
) -> int:
    """The number of new code.

    Args:
        inputs: the tensors that the field holds, of which the first ``differentiable`` get
            gradients.
        shape: of a sample.
        ends: where the parts of a sample end whose errors are measured apart; none for one part.
        gradients: whether the VJP is compiled as well.
    """
    programs = [_value(traced, inputs, shape, target)]
    work = multiplications(programs[0])
    if gradients:
        programs.append(_vjp(traced, inputs, differentiable, shape, target))
    addresses = load(programs, target)
    return extension.native().generated_field(
        addresses[0],
        addresses[1] if gradients else 0,
        target.number == "double",
        list(shape),
        list(ends),
        [x.numel() for x in inputs],
        differentiable,
        work,
    )


def load(programs: Sequence[Program], target: Target) -> list[int]:
    """The addresses of their compiled code."""
    for program in programs:
        arrange(program, target.vectors)
    best = fused_request.INSTRUCTIONS == extension.native().mlp_instruction_sets()[-1]
    flags = toolchain.machine_flags(fused_request.INSTRUCTIONS, best)
    sources = [emit(program, plan(program, []), target) for program in programs]
    return [toolchain.load(library) for library in toolchain.build(sources, flags)]


def held_views(inputs: Sequence[Tensor]) -> list[View | Tensor]:
    """What code reads of the tensors that a field holds; whole numbers are part of it."""
    return [
        View.whole(Buffer(x.numel(), PARAMETERS, "input", i), x.shape)
        if x.is_floating_point()
        else x
        for i, x in enumerate(inputs)
    ]


def sums_of(inputs: Sequence[Tensor]) -> list[View]:
    """Where the gradients of inputs are added."""
    return [
        View.whole(Buffer(x.numel(), PARAMETERS, "sum", i + 1), x.shape)
        for i, x in enumerate(inputs)
    ]


def _arguments(
    inputs: Sequence[Tensor], shape: Sequence[int], target: Target, names: str
) -> list[View | Tensor]:
    numel = math.prod(shape)
    level = SAMPLE if target.per_sample_times else TIME
    found: dict[str, View] = {
        "t": View.whole(Buffer(1, level, "t"), ()),
        "y": View.whole(Buffer(numel, SAMPLE, "y"), shape),
        "g": View.whole(Buffer(numel, SAMPLE, "g"), shape),
    }
    return [*(found[name] for name in names), *held_views(inputs)]


def _value(traced: Traced, inputs: Sequence[Tensor], shape: torch.Size, target: Target) -> Program:
    low = Lowering(traced.value, _arguments(inputs, shape, target, "ty"), [None])
    return finished(low, shape)


def _vjp(
    traced: Traced,
    inputs: Sequence[Tensor],
    differentiable: int,
    shape: torch.Size,
    target: Target,
) -> Program:
    time = View.whole(Buffer(1, PARAMETERS, "sum", 0), ())
    sinks = [None, time, *sums_of(inputs[:differentiable])]
    low = Lowering(traced.vjp, _arguments(inputs, shape, target, "tyg"), sinks)
    return finished(low, shape)


def finished(low: Lowering, shape: Sequence[int]) -> Program:
    """The program that returns the first output."""
    (found, *_) = low.results()
    value = low.view(low.spread(0.0 if found is None else found, shape), shape)
    place_results(low.program, [value], ["out"])
    return low.program


def multiplications(program: Program) -> int:
    """For one sample, about."""
    total = 0
    for each in program.statements:
        if isinstance(each, (Product, Outer)):
            total += math.prod(each.a.sizes) * each.b.sizes[1]
        elif isinstance(each, Convolve):
            s = each.shape
            total += s.groups * s.inputs * s.outputs * math.prod(s.kernel) * math.prod(s.result)
        else:
            # An activation costs about twenty.
            total += 20 * each.out.numel
    return total
