"""Gradients by an autograd graph that shall be there afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def keeping_graph(gradients: Callable[[bool], Result]) -> tuple[Result, bool]:
    """``gradients(retain_graph)`` and whether the graph is still there.

    What torch.compile made of a function computes its gradient once: its backward pass writes over
    tensors of the forward pass ("donated buffers"), and raises before it does so where the graph is
    to be retained. Then the graph is given up.
    """
    try:
        return gradients(True), True
    except RuntimeError as error:
        if "donated buffers" not in str(error):
            raise
    return gradients(False), False
