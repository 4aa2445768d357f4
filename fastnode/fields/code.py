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

__all__ = ["Target", "build"]


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
    work = _multiplications(programs[0])
    if gradients:
        programs.append(_vjp(traced, inputs, differentiable, shape, target))
    for program in programs:
        arrange(program, target.vectors)
    best = fused_request.INSTRUCTIONS == extension.native().mlp_instruction_sets()[-1]
    flags = toolchain.machine_flags(fused_request.INSTRUCTIONS, best)
    sources = [emit(program, plan(program, []), target) for program in programs]
    addresses = [toolchain.load(library) for library in toolchain.build(sources, flags)]
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
    held: list[View | Tensor] = [
        View.whole(Buffer(x.numel(), PARAMETERS, "input", i), x.shape)
        if x.is_floating_point()
        else x
        for i, x in enumerate(inputs)
    ]
    return [*(found[name] for name in names), *held]


def _value(traced: Traced, inputs: Sequence[Tensor], shape: torch.Size, target: Target) -> Program:
    low = Lowering(traced.value, _arguments(inputs, shape, target, "ty"), [None])
    return _finished(low, shape)


def _vjp(
    traced: Traced,
    inputs: Sequence[Tensor],
    differentiable: int,
    shape: torch.Size,
    target: Target,
) -> Program:
    sinks: list[View | None] = [None, View.whole(Buffer(1, PARAMETERS, "sum", 0), ())]
    for i, x in enumerate(inputs[:differentiable]):
        sinks.append(View.whole(Buffer(x.numel(), PARAMETERS, "sum", i + 1), x.shape))
    low = Lowering(traced.vjp, _arguments(inputs, shape, target, "tyg"), sinks)
    return _finished(low, shape)


def _finished(low: Lowering, shape: torch.Size) -> Program:
    (found, *_) = low.results()
    value = low.view(low.spread(0.0 if found is None else found, shape), shape)
    place_results(low.program, [value], ["out"])
    return low.program


def _multiplications(program: Program) -> int:
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
