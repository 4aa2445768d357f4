"""Solves of perceptrons by the CUDA kernels, run on the CPU (tests/csrc/emulation)."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_double, c_int, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any

import torch
from cuda_emulation import library, numbers, pointer
from torch import Tensor

from fastnode.control.controllers import Controller
from fastnode.control.stiffness import Stiffness
from fastnode.engines.native import joint as native
from fastnode.nn import MLPField
from fastnode.tableaus import METHODS

JOINT, PER_SAMPLE, FIXED = range(3)
TIMES = [0.0, 0.3, 0.31, 1.1, 2.0]
DTYPES = [torch.float32, torch.float64]
DOUBLES = POINTER(c_double)


def make(
    dim=3, hidden=16, depth=2, activation="tanh", time="every", dtype=torch.float64, bias=True
):
    """A field that bends more than a new one, always the same."""
    torch.manual_seed(0)
    field = MLPField(dim, hidden, depth, activation, time, bias).to(dtype)
    with torch.no_grad():
        for each in field.parameters():
            each *= 1.5
    return field


class Problem(ctypes.Structure):
    _fields_ = [
        *((name, c_int) for name in ("dtype", "kind", "layers", "activation")),
        ("parameters", POINTER(c_void_p)),
        ("sizes", POINTER(c_int)),
        *((name, c_int) for name in ("stages", "further", "fsal", "order", "degree")),
        *((name, DOUBLES) for name in ("rows", "fractions", "solution", "error")),
        *((name, DOUBLES) for name in ("derivatives", "states", "dense")),
        ("stability", c_double),
        *((name, c_int64) for name in ("batch", "dim", "outputs", "max_num_steps", "capacity")),
        ("grid_count", c_int64),
        *((name, c_int) for name in ("all_together", "perturb")),
        *((name, c_void_p) for name in ("y0", "ys")),
        *((name, DOUBLES) for name in ("times", "control", "grid")),
        *((name, c_double) for name in ("rtol", "atol", "first_step")),
        *((name, DOUBLES) for name in ("rtols", "atols", "directions", "first_steps")),
        ("room", c_int64),
        *((name, DOUBLES) for name in ("ends", "errors", "stiffness")),
        ("kept", c_void_p),
        ("counts", POINTER(c_int64)),
        ("ended", DOUBLES),
        *((name, POINTER(c_int64)) for name in ("launches", "plan")),
        *((name, c_int) for name in ("global_weights", "tensor")),
    ]


@dataclass
class Result:
    """[rows, ...] with a row for each sample or one; records [room, rows]."""

    ys: Tensor
    counts: list[list[int]]
    ended: list[list[float]]
    ends: Tensor
    errors: Tensor
    stiffness: Tensor
    kept: Tensor | None
    launches: int
    plan: list[int]

    @property
    def global_weights(self) -> bool:
        return bool(self.plan[5])

    def steps(self, name: str, row: int = 0) -> Tensor:
        return getattr(self, name)[: self.counts[row][0], row]


def method_of(name: str) -> dict[str, Any]:
    tableau = METHODS[name]
    stages, further = len(tableau.a), tableau.further_stages
    total = stages + len(further)

    def full(weights):
        row = [0.0] * total
        for i, value in zip(weights.stages, weights.values, strict=True):
            row[i] = value
        return row

    dense = tableau.dense_weights if tableau.dense else []
    degree = max((len(row) for _, row in dense), default=0)
    polynomials = [[0.0] * degree for _ in range(total)]
    for i, row in dense:
        polynomials[i][: len(row)] = row
    pair = Stiffness(tableau).weights
    nothing = [0.0] * total
    return {
        "stages": stages,
        "further": len(further),
        "fsal": tableau.fsal,
        "order": tableau.order,
        "degree": degree,
        "rows": numbers([full(row) for row in (*tableau.stage_weights, *(w for _, w in further))]),
        "fractions": numbers([*tableau.stage_times, *(t for t, _ in further)]),
        "solution": numbers(full(tableau.solution_weights)),
        "error": numbers(nothing if tableau.error is None else full(tableau.error_weights)),
        "derivatives": numbers(full(pair[0]) if pair else nothing),
        "states": numbers(full(pair[1]) if pair else nothing),
        "dense": numbers(polynomials),
        "stability": pair[2] if pair else 0.0,
    }


def layers_of(field: Any) -> tuple[dict[str, Any], list[Any]]:
    """For a problem, and weights and biases, which must outlive it."""
    layers, activation = field.perceptron()
    held = [x if x is None else x.detach().contiguous() for w, b, _ in layers for x in (w, b)]
    sizes = [n for w, _, column in layers for n in (w.shape[1] - (column >= 0), w.shape[0], column)]
    return {
        "layers": len(layers),
        "activation": activation,
        "parameters": (c_void_p * len(held))(*map(pointer, held)),
        "sizes": (c_int * len(sizes))(*sizes),
    }, held


def kernels() -> ctypes.CDLL:
    return library("mlp_solves.cpp", ("mlp/cuda/*.cu", "mlp/cuda/plan.cpp"))


@torch.no_grad()
def run(
    field: Any,
    y0: Tensor,
    times: Any,
    method: str = "dopri5",
    kind: int = JOINT,
    *,
    rtol: Any = 1e-5,
    atol: Any = 1e-6,
    controller: Controller | None = None,
    first_step: Any = 0.0,
    max_num_steps: int = 10**6,
    all_together: bool = True,
    grid: Any = (),
    perturb: bool = False,
    capacity: int = 128,
    room: int = 512,
    keep: bool = False,
    global_weights: bool = False,
    tensor: bool = False,
) -> Result | None:
    """None where the kernels do not take it. ``times`` [T], or [batch, T] by sample;
    ``global_weights``:
    weights in device memory although there is room for them in shared memory; ``tensor``: by tensor
    cores where that is thought to pay."""
    told, held = layers_of(field)
    batch, dim = y0.shape
    y0 = y0.contiguous()
    times = torch.as_tensor(times, dtype=torch.float64)
    outputs = times.shape[-1]
    rows = batch if kind == PER_SAMPLE else 1

    def to_rows(value):
        return numbers(torch.as_tensor(value, dtype=torch.float64).expand(batch))

    ys = torch.full((outputs, batch, dim), torch.nan, dtype=y0.dtype)
    records = [torch.full((room, rows), torch.nan, dtype=torch.float64) for _ in range(3)]
    steps = len(grid) - 1 if kind == FIXED else room
    parts = 1 if kind == FIXED else 2
    kept = torch.full((steps, parts, batch, dim), torch.nan, dtype=y0.dtype) if keep else None
    counts, ended = (c_int64 * (5 * rows))(), (c_double * (3 * rows))()
    launches, plan = c_int64(), (c_int64 * 6)()
    per_sample: dict[str, Any] = {}
    if kind == PER_SAMPLE:
        times = times.expand(batch, outputs).contiguous()
        per_sample = {
            "rtols": to_rows(rtol),
            "atols": to_rows(atol),
            "directions": to_rows(torch.sign(times[:, -1] - times[:, 0])),
            "first_steps": None if isinstance(first_step, float) else to_rows(first_step),
        }
        rtol, atol, first_step = 0.0, 0.0, 0.0
    problem = Problem(
        dtype=DTYPES.index(y0.dtype),
        kind=kind,
        **told,
        **method_of(method),
        batch=batch,
        dim=dim,
        outputs=outputs,
        max_num_steps=max_num_steps,
        capacity=capacity,
        grid_count=len(grid),
        all_together=all_together,
        perturb=perturb,
        y0=pointer(y0),
        ys=pointer(ys),
        times=numbers(times),
        control=numbers(native.control_numbers(controller or Controller())),
        grid=numbers(grid),
        rtol=rtol,
        atol=atol,
        first_step=first_step,
        **per_sample,
        room=room,
        **{
            name: ctypes.cast(pointer(x), DOUBLES)
            for name, x in zip(("ends", "errors", "stiffness"), records, strict=True)
        },
        kept=pointer(kept),
        counts=counts,
        ended=ended,
        launches=ctypes.pointer(launches),
        plan=plan,
        global_weights=global_weights,
        tensor=tensor,
    )
    error = kernels().mlp_solve(ctypes.byref(problem))
    del held
    assert error in (0, 1), error
    if error:
        return None
    return Result(
        ys,
        [counts[5 * i : 5 * i + 5] for i in range(rows)],
        [ended[3 * i : 3 * i + 3] for i in range(rows)],
        *records,
        kept,
        launches.value,
        list(plan),
    )
