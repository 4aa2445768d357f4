"""Gradients of solves of perceptrons by the CUDA kernels, run on the CPU (tests/csrc/emulation)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_int, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any

import torch
from cuda_emulation import numbers, pointer
from emulated_mlp import (
    DOUBLES,
    DTYPES,
    FIXED,
    JOINT,
    PER_SAMPLE,
    TIMES,
    Problem,
    Result,
    kernels,
    layers_of,
    method_of,
)
from torch import Tensor


class _Way(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("of_ys", "kept")),
        ("edges", DOUBLES),
        ("steps", c_int64),
        ("offsets", POINTER(c_int64)),
        ("gy0", c_void_p),
        ("gradients", POINTER(c_void_p)),
        ("rates", DOUBLES),
        *((name, c_int) for name in ("no_parameters", "sums_apart")),
    ]


@dataclass
class Gradients:
    """Of y0, of weights and biases in the order of the layers, and for each output what its time's
    gradient is made of."""

    y0: Tensor
    parameters: list[Tensor]
    rates: Tensor | None
    plan: list[int]


@torch.no_grad()
def back(
    field: Any,
    of_ys: Tensor,
    times: Any,
    kept: Tensor,
    edges: Sequence[float] | list[Tensor],
    method: str = "dopri5",
    kind: int = JOINT,
    *,
    perturb: bool = False,
    rates: bool = False,
    parameters: bool = True,
    sums_apart: bool = False,
    global_weights: bool = False,
    tensor: bool = False,
) -> Gradients | None:
    """The way back of a solve from the gradient of its solution; ``edges`` of its steps, or by
    sample a list of where each sample's end; ``global_weights`` and ``tensor`` as those of ``run``.
    None where the kernels do not take it."""
    told, held = layers_of(field)
    outputs, batch, dim = of_ys.shape
    of_ys = of_ys.contiguous()
    times = torch.as_tensor(times, dtype=torch.float64)
    per_sample: dict[str, Any] = {}
    offsets = None
    if kind == PER_SAMPLE:
        times = times.expand(batch, outputs).contiguous()
        per_sample["directions"] = numbers(torch.sign(times[:, -1] - times[:, 0]))
        counts = torch.tensor([0, *(len(x) for x in edges)]).cumsum(0)
        offsets = (c_int64 * (batch + 1))(*counts.tolist())
        edges = torch.cat([torch.as_tensor(x) for x in edges]).tolist()
    gy0 = torch.full((batch, dim), torch.nan, dtype=of_ys.dtype)
    found = [x if x is None else torch.full_like(x, torch.nan) for x in held]
    of_times = torch.full((outputs,), torch.nan, dtype=torch.float64) if rates else None
    plan = (c_int64 * 6)()
    problem = Problem(
        dtype=DTYPES.index(of_ys.dtype),
        kind=kind,
        **told,
        **method_of(method),
        batch=batch,
        dim=dim,
        outputs=outputs,
        perturb=perturb,
        times=numbers(times),
        **per_sample,
        plan=plan,
        global_weights=global_weights,
        tensor=tensor,
    )
    way = _Way(
        of_ys=pointer(of_ys),
        kept=pointer(kept.contiguous()),
        edges=numbers(edges),
        steps=len(edges) - 1,
        offsets=offsets,
        gy0=pointer(gy0),
        gradients=(c_void_p * len(found))(*map(pointer, found)),
        rates=ctypes.cast(pointer(of_times), DOUBLES),
        no_parameters=not parameters,
        sums_apart=sums_apart,
    )
    error = kernels().mlp_solve_backward(ctypes.byref(problem), ctypes.byref(way))
    assert error in (0, 1), error
    if error:
        return None
    given = [x for x in found if x is not None] if parameters else []
    return Gradients(gy0, given, of_times, list(plan))


def back_through(
    field: Any, y0: Tensor, kind: int, found: Result, grid: Any, **options: Any
) -> Gradients | None:
    """``back``, from a random gradient of the solution at TIMES, through the steps that were
    ``found``: by dopri5, or by rk4 along ``grid``."""
    generator = torch.Generator().manual_seed(2)
    of_ys = torch.randn(len(TIMES), *y0.shape, dtype=y0.dtype, generator=generator)
    method, edges, kept = ("rk4" if kind == FIXED else "dopri5"), grid, found.kept
    assert kept is not None
    if kind == JOINT:
        edges = [TIMES[0], *found.steps("ends").tolist()]
        kept = kept[: len(edges) - 1]
    if kind == PER_SAMPLE:
        edges = [found.steps("ends", b) for b in range(len(y0))]
    return back(field, of_ys, TIMES, kept, edges, method, kind, **options)
