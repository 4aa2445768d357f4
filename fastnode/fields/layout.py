"""Copies of weights in the order in which products read them, made once a solve."""

from __future__ import annotations

from fastnode.fields.ir import (
    PARAMETERS,
    SAMPLE,
    Assign,
    Buffer,
    Convolve,
    Product,
    Program,
    Statement,
    View,
)

#: Rows of one sample from which a copy of a matrix pays that is used for this one alone.
_ROWS = 4
_LEAST = 64


def arrange(program: Program, vectors: int) -> None:
    """Changes a program for tiles of that many vectors, or 0 for one sample.

    A product adds up several outputs at a time: their weights shall lie side by side. A copy costs
    as much as a small part of one evaluation of a tile, but as much as several of one sample: there
    it is made for convolutions, which use a weight at each point, and for products of many rows.
    """
    statements: list[Statement] = []
    copies: dict[object, View] = {}

    def copied(view: View) -> View:
        key = view.buffer, view.offset, view.sizes, view.strides
        found = copies.get(key)
        if found is None:
            found = View.whole(Buffer(view.numel, view.level), view.sizes)
            statements.append(Assign(found, view))
            copies[key] = found
        return found

    for each in program.statements:
        if isinstance(each, Product) and each.level == SAMPLE:
            rows = vectors > 0 or each.a.sizes[0] >= _ROWS
            if rows and _scattered(each.b):
                each.b = copied(each.b)
            elif rows and each.b.level == SAMPLE and _scattered(_turned(each.a)) and vectors:
                each.a = _turned(copied(_turned(each.a)))
        elif isinstance(each, Convolve) and not vectors and each.kind != "weight":
            s = each.shape
            sizes = (s.groups, s.outputs, s.inputs, *s.kernel)
            weights = each.other.reshape(sizes)
            if weights is not None and each.other.level != SAMPLE:
                order = (0, 2, 3, 4, 1) if each.kind == "forward" else (0, 1, 3, 4, 2)
                if each.kind == "input":
                    # Taps in reverse order.
                    for d in (3, 4):
                        weights = weights.narrow(d, weights.sizes[d] - 1, weights.sizes[d], -1)
                each.other = copied(weights.permute(order))
                each.packed = True
        statements.append(each)
    program.statements = statements


def _turned(view: View) -> View:
    return view.permute((1, 0))


def _scattered(view: View) -> bool:
    """Whether it is a matrix of parameters whose columns do not lie side by side."""
    plain = view.level == PARAMETERS and view.numel >= _LEAST
    return plain and view.strides[1] != 1 and 0 not in view.strides
