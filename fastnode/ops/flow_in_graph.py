"""The flow step in a graph that torch.compile records: ops that decompose into plain formulas.

All that a compiler reads while it traces Python, such as a function, a constant or a method, it
compares again before each call of the graph. In a training step these comparisons miss the cache
and show in the time of the step (flow.jsonl). Of an op it reads the name alone, and it
decomposes these before it fuses formulas, so that they become one with the vector field.

For that reason the functions here ask for nothing but attributes of tensors, and are imported by
name: a module that is reached in two ways is one comparison more.
"""

from __future__ import annotations

from typing import Any

import torch

from fastnode.ops import dispatch
from fastnode.ops.flow_loss import flow_loss_reference
from fastnode.ops.interpolant import BUILT_IN, LINEAR_VELOCITY, Coefficients, combine
from fastnode.torch_support.compile import is_exporting

Found = tuple[torch.Tensor, torch.Tensor, torch.Tensor, Coefficients]


def interpolate_in_graph(
    kind: int | None, z0: torch.Tensor, z1: torch.Tensor, t: torch.Tensor
) -> Found | None:
    """z_t of a built-in path, the end points as they are now, and the coefficients; None outside of
    a graph, for a path of the caller's, and for tensors that must be checked or converted.

    An exported graph would keep the op, and runs where fastnode is not installed.
    """
    if not torch.compiler.is_compiling() or kind is None or is_exporting():
        return None
    if not (
        isinstance(z0, torch.Tensor)
        and isinstance(z1, torch.Tensor)
        and isinstance(t, torch.Tensor)
    ):
        return None
    if z0.dim() == 0 or z0.shape != z1.shape or t.shape != z0.shape[:1]:
        return None
    if z0.dtype != z1.dtype or z0.device != z1.device or z0.device != t.device:
        return None
    if not (z0.is_floating_point() and t.is_floating_point()) or z0.element_size() == 1:
        return None
    if t.element_size() != (8 if z0.element_size() == 8 else 4):
        return None
    if kind == 0:
        zt, z0, z1, a, b = _linear_path(z0, z1, t)
        return zt, z0, z1, (a, b, -1.0, 1.0)
    zt, z0, z1, a, b, da, db = _curved_path(z0, z1, t, kind)
    return zt, z0, z1, (a, b, da, db)


def loss_in_graph(v: torch.Tensor, target: Any, reduction: str) -> torch.Tensor | None:
    """The loss for a target with one tensor a coefficient, as all that a graph made have; None
    outside of a graph, for other targets, and for velocities that must be checked or converted."""
    if not torch.compiler.is_compiling() or reduction not in ("mean", "sum"):
        return None
    if isinstance(target, torch.Tensor) or not isinstance(v, torch.Tensor):
        return None
    coef = getattr(target, "coef", None)
    if not isinstance(coef, tuple) or is_exporting():
        return None
    z0, z1 = target.z0, target.z1
    if v.shape != z0.shape or v.dtype != z0.dtype or v.device != z0.device:
        return None
    da, db = coef[2:]
    velocity = [da, db] if isinstance(da, torch.Tensor) else []
    return _formula_loss(v, z0, z1, velocity, reduction == "mean")


def _linear(z0: torch.Tensor, z1: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, ...]:
    a = 1 - t
    # An op returns nothing that it was given. A graph has no versions to compare either: these are
    # the end points as they are now, which a compiler copies only if they change.
    return combine(z0, z1, a, t), z0.clone(), z1.clone(), a, t.clone()


def _curved(
    z0: torch.Tensor, z1: torch.Tensor, t: torch.Tensor, kind: int
) -> tuple[torch.Tensor, ...]:
    coef = [function(t) for function in BUILT_IN[kind]]
    return combine(z0, z1, coef[0], coef[1]), z0.clone(), z1.clone(), *coef


def _loss(
    v: torch.Tensor, z0: torch.Tensor, z1: torch.Tensor, velocity: list[torch.Tensor], mean: bool
) -> torch.Tensor:
    return flow_loss_reference(v, z0, z1, (0.0, 0.0, *(velocity or LINEAR_VELOCITY)), mean)


_linear_path = dispatch.define_formulas(
    "linear_path(Tensor z0, Tensor z1, Tensor t) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _linear,
)
_curved_path = dispatch.define_formulas(
    "curved_path(Tensor z0, Tensor z1, Tensor t, int kind)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _curved,
)
_formula_loss = dispatch.define_formulas(
    "formula_loss(Tensor v, Tensor z0, Tensor z1, Tensor[] velocity, bool mean) -> Tensor", _loss
)
