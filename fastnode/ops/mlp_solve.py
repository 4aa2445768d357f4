"""mlp_solve: the whole solve of a multilayer perceptron, and its gradient.

Both are defined, for the CPU, in C++ (csrc/ops/mlp/solve.cpp, autograd.cpp); their reference is
the reference engine. What a solve leaves behind has sizes that only the solve knows: the records of
its steps and, for gradients, the states at which they began are tensors of unbacked size, so that
torch.compile traces through a solve and its gradient without a break. The solution itself has the
size of the times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastnode import extension
from fastnode.ops import dispatch

mlp_solve = dispatch.overload("mlp_solve")
_REAL = (torch.float32, torch.float64)
#: Of parameters: where the native engine may be faster (see mlp_pays in csrc/ops/mlp/layers.cpp).
_LARGEST_IN_GRAPH = 1 << 20


def solve_in_graph(
    layers: Sequence[tuple[Tensor, Tensor | None, int]],
    activation: int,
    y0: Any,
    t: Any,
    method: str,
    tolerances: tuple[float, float],
    control: tuple[float, ...],
    first_and_most: tuple[float | None, int],
    grid: Tensor | None,
    perturb: bool,
    instructions: int,
) -> Tensor | None:
    """The solution by the op, in a graph of torch.compile, which no call of Python may interrupt;
    None where its tensors are not such as the op takes, or another engine is faster.

    Args:
        layers, activation: see engines.fused.
        y0, t, method, grid, perturb, instructions: see csrc/ops/mlp/solve.h.
        tolerances: relative and absolute.
        control: numbers of a controller; none for steps along ``grid``.
        first_and_most: size of the first step, steps tried between two times at most.
    """
    if not isinstance(y0, Tensor) or not isinstance(t, Tensor) or y0.dim() == 0 or t.dim() != 1:
        return None
    if y0.device.type != "cpu" or t.device.type != "cpu" or y0.numel() == 0 or t.shape[0] < 2:
        return None
    if y0.dtype not in _REAL or t.dtype not in _REAL or (t.requires_grad and not control):
        return None
    parameters: list[Tensor] = []
    layout: list[int] = []
    size = width = y0.shape[-1]
    for weight, bias, column in layers:
        parameters += [weight] if bias is None else [weight, bias]
        layout += [column, int(bias is not None)]
        if weight.shape[1] != size + (column >= 0):
            return None
        size = weight.shape[0]
    if size != width or any(x.dtype != y0.dtype or x.device.type != "cpu" for x in parameters):
        return None
    if sum(x.numel() for x in parameters) > _LARGEST_IN_GRAPH:
        return None
    return mlp_solve(
        y0,
        t,
        parameters,
        layout,
        activation,
        method,
        *tolerances,
        control,
        *first_and_most,
        True,
        grid,
        perturb,
        False,
        False,
        False,
        None,
        instructions,
    )[0]


def _fake_solve(
    y0: Tensor,
    t: Tensor,
    parameters: Sequence[Tensor],
    layout: Sequence[int],
    activation: int,
    method: str,
    rtol: float,
    atol: float,
    controller: Sequence[float],
    first_step: float | None,
    max_num_steps: int,
    counted_anew: bool,
    grid: Tensor | None,
    perturb: bool,
    stiffness: bool,
    keep: bool,
    tape: bool,
    slots: int | None,
    instructions: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if controller:
        # Of the ends of steps: the one size that is in every result's shape as it is.
        edges, parts = torch.library.get_ctx().new_dynamic_size(min=2), 2
    else:
        assert grid is not None
        edges, parts = grid.shape[0], 1
    return (
        y0.new_empty((t.shape[0], *y0.shape)),
        torch.empty((3, edges), dtype=torch.float64, device=y0.device),
        torch.empty((2,), dtype=torch.int64, device=y0.device),
        y0.new_empty((edges - 1 if keep else 0, parts, *y0.shape)),
    )


def _fake_backward(
    of_ys: Tensor | None,
    of_steps: Tensor | None,
    kept: Tensor,
    steps: Tensor,
    t: Tensor,
    parameters: Sequence[Tensor],
    layout: Sequence[int],
    activation: int,
    method: str,
    rtol: float,
    atol: float,
    adaptive: bool,
    perturb: bool,
    of_parameters: bool,
    of_times: bool,
    slots: int | None,
    instructions: int,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    return (
        kept.new_empty(kept.shape[2:] if slots is None else kept.shape),
        torch.empty((t.shape[0] if of_times else 0,), dtype=torch.float64, device=kept.device),
        [x.new_empty(x.shape) for x in parameters] if of_parameters else [],
    )


if extension.AVAILABLE:
    dispatch.register_fake("mlp_solve", _fake_solve)
    dispatch.register_fake("mlp_solve_backward", _fake_backward)
