"""mlp_solve: the whole solve of a multilayer perceptron, and its gradient.

Both are defined, for the CPU, in C++ (csrc/ops/mlp/solve.cpp, autograd.cpp); their reference is
the reference engine. What a solve leaves behind has sizes that only the solve knows: the records of
its steps and, for gradients, the states at which they began are tensors of unbacked size, so that
torch.compile traces through a solve and its gradient without a break. The solution itself has the
size of the times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fastnode import extension
from fastnode.ops import dispatch
from fastnode.torch_support.compile import is_exporting

mlp_solve = dispatch.overload("mlp_solve")
_REAL = (torch.float32, torch.float64)
Layers: TypeAlias = Sequence[tuple[Tensor, Tensor | None, int]]
#: Of a request: numbers beside those of a controller, and places among its settings
#: (csrc/ops/mlp/request.cpp).
_OWN_NUMBERS, _KEEP, _ADJOINT, _REVOLVE = 3, 4, 5, 2
#: Of parameters: where the native engine may be faster (see mlp_pays in csrc/ops/mlp/layers.cpp).
_LARGEST_IN_GRAPH = 1 << 20


def takes_in_graph(layers: Layers, y0: Any, t: Any, adaptive: bool) -> bool:
    """Whether the op takes these tensors in a graph of torch.compile, which no call of Python may
    interrupt, and no other engine is faster."""
    if is_exporting():
        # An exported graph is to run where fastnode is not installed.
        return False
    if not isinstance(y0, Tensor) or not isinstance(t, Tensor) or y0.dim() == 0 or t.dim() != 1:
        return False
    if y0.device.type != "cpu" or t.device.type != "cpu" or y0.numel() == 0 or t.shape[0] < 2:
        return False
    if y0.dtype not in _REAL or t.dtype not in _REAL or (t.requires_grad and not adaptive):
        return False
    parameters, _ = _flat(layers)
    size = y0.shape[-1]
    for weight, _, column in layers:
        if weight.shape[1] != size + (column >= 0):
            return False
        size = weight.shape[0]
    if size != y0.shape[-1]:
        return False
    if any(x.dtype != y0.dtype or x.device.type != "cpu" for x in parameters):
        return False
    return sum(x.numel() for x in parameters) <= _LARGEST_IN_GRAPH


def solve_in_graph(
    layers: Layers,
    activation: int,
    y0: Tensor,
    t: Tensor,
    grid: Tensor | None,
    method: str,
    numbers: Sequence[float],
    settings: Sequence[int],
) -> Tensor:
    """The states at t by the op, for tensors that ``takes_in_graph`` has found to fit; see
    csrc/ops/mlp/request.h for the numbers and settings."""
    parameters, layout = _flat(layers)
    return mlp_solve(y0, t, grid, parameters, layout, activation, method, numbers, settings)[0]


def _flat(layers: Layers) -> tuple[list[Tensor], list[int]]:
    parameters: list[Tensor] = []
    layout: list[int] = []
    for weight, bias, column in layers:
        parameters += [weight] if bias is None else [weight, bias]
        layout += [column, int(bias is not None)]
    return parameters, layout


def _fake_solve(
    y0: Tensor,
    t: Tensor,
    grid: Tensor | None,
    parameters: Sequence[Tensor],
    layout: Sequence[int],
    activation: int,
    method: str,
    numbers: Sequence[float],
    settings: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if len(numbers) > _OWN_NUMBERS:
        # Of the ends of steps: the one size that is in every result's shape as it is.
        edges, parts = torch.library.get_ctx().new_dynamic_size(min=2), 2
    else:
        assert grid is not None
        edges, parts = grid.shape[0], 1
    return (
        y0.new_empty((t.shape[0], *y0.shape)),
        torch.empty((3, edges), dtype=torch.float64, device=y0.device),
        torch.empty((2,), dtype=torch.int64, device=y0.device),
        y0.new_empty((edges - 1 if settings[_KEEP] else 0, parts, *y0.shape)),
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
    numbers: Sequence[float],
    settings: Sequence[int],
    of_parameters: bool,
    of_times: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    revolves = settings[_ADJOINT] == _REVOLVE
    return (
        kept.new_empty(kept.shape if revolves else kept.shape[2:]),
        torch.empty((t.shape[0] if of_times else 0,), dtype=torch.float64, device=kept.device),
        [x.new_empty(x.shape) for x in parameters] if of_parameters else [],
    )


if extension.AVAILABLE:
    dispatch.register_fake("mlp_solve", _fake_solve)
    dispatch.register_fake("mlp_solve_backward", _fake_backward)
