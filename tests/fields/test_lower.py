"""From traces to statements: which form what the VJP computes gets."""

from __future__ import annotations

import pytest
import torch

from fastnode.fields.ir import PARAMETERS, SAMPLE, TIME, Accumulate, Buffer, Outer, View
from fastnode.fields.lower import Lowering
from fastnode.fields.trace import trace


def lowered_vjp(call, width, *inputs):
    """The statements of the VJP of ``call(t, y, *inputs)``, y [width]."""
    traced = trace(call, torch.zeros(width), torch.zeros(()), inputs, len(inputs))
    arguments = [View.whole(Buffer(1, TIME, "t"), ())]
    arguments += [View.whole(Buffer(width, SAMPLE, name), (width,)) for name in "yg"]
    sinks = [None, View.whole(Buffer(1, PARAMETERS, "sum", 0), ())]
    for i, x in enumerate(inputs):
        arguments.append(View.whole(Buffer(x.numel(), PARAMETERS, "input", i), x.shape))
        sinks.append(View.whole(Buffer(x.numel(), PARAMETERS, "sum", i + 1), x.shape))
    return Lowering(traced.vjp, arguments, sinks).program.statements


@pytest.mark.parametrize("dim", [0, 1])
def test_parts_of_a_weight_get_products_over_samples(dim):
    """Kept for each sample, the gradient of a matrix would cost more than all the rest."""

    def call(t, y, weight):
        whole, column = weight.split([6, 1], dim)
        return torch.tanh((y[None] @ whole).squeeze(0) + t * column.reshape(-1))

    weight = torch.zeros((7, 6) if dim == 0 else (6, 7))
    statements = lowered_vjp(call, 6, weight)
    (outer,) = (x for x in statements if isinstance(x, Outer))
    assert outer.out.sizes == (6, 6) and outer.out.buffer.size == 42
    sums = sorted(x.out.numel for x in statements if isinstance(x, Accumulate))
    assert sums == [1, 6]
