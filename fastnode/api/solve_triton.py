"""Solves of many small problems by one Triton kernel that holds the caller's field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastnode.control.controllers import Controller, find_controller
from fastnode.engines.failures import Failure, raise_failure
from fastnode.engines.methods import ADAPTIVE
from fastnode.ops.dispatch import has_triton
from fastnode.problem.ivp import check_times
from fastnode.tableaus import Tableau
from fastnode.torch_support.compile import uncompiled


@dataclass(frozen=True, eq=False)
class Trajectories:
    """The result of ``fastnode.solve_triton``; its tensors are on the device of y0.

    Args:
        ts: the caller's times, [T].
        ys: the states at these times, [T, B, D], NaN where a trajectory did not get.
        status: int8 [B]: 0 if finished, else 1, 2 or 3 for what NonFiniteState, StepSizeUnderflow
            and MaxStepsExceeded report.
        nfe: evaluations of the field for each trajectory, int64 [B].
        accepted, rejected: steps, int64 [B].
    """

    ts: Tensor
    ys: Tensor
    status: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor


@uncompiled
def solve_triton(
    field: Any,
    y0: Tensor,
    ts: Tensor,
    args: Sequence[float | Tensor] = (),
    *,
    method: str = "tsit5",
    rtol: float = 1e-3,
    atol: float = 1e-6,
    controller: str | Controller = "I",
    first_step: float | None = None,
    max_num_steps: int = 100_000,
    throw: bool = True,
) -> Trajectories:
    """Solves dy/dt = field(t, y, *args) for B trajectories with per-sample stepping, in one kernel.

    It is ``solve(..., per_sample=True)`` for a field that is a Triton device function: the same
    steps up to rounding. The whole solve is one launch; states, derivatives and the field stay in
    registers, so a state has a few components, not hundreds. There are no gradients.

    Args:
        field: a function decorated with ``triton.jit``, called with the time, the D components of
            the state and the numbers of args, one argument each; returns a tuple of the D
            derivatives. All of them are blocks of one shape and of y0's dtype, an entry for each
            trajectory.
        y0: initial states, float32 or float64, [B, D] on a CUDA device. Under Triton's interpreter
            (``TRITON_INTERPRET=1`` before triton is imported) on the CPU.
        ts: times at which the solution is wanted, [T], strictly increasing or decreasing.
        args: parameters of the field, each a number or a tensor [B].
        method: "tsit5" or another adaptive method whose last stage derivative is that at the end of
        the step
            and whose dense output needs no evaluations: dopri5, bosh3.
        rtol, atol: tolerances of each trajectory's error, as in ``solve``.
        controller: "I", "PI", "PID" or a ``Controller`` without rules of its own.
        first_step: size of the first step; chosen at the cost of one evaluation if None.
        max_num_steps: steps that each trajectory tries before it gives up.
        throw: whether trajectories that cannot go on raise, for which the host waits for the
            kernel; else ``Trajectories.status`` tells them.

    Raises:
        ValueError, TypeError: an argument is wrong; named before any work is done.
        ImportError: Triton is not installed.
        StepSizeUnderflow, MaxStepsExceeded, NonFiniteState: a trajectory cannot go on.
    """
    if not has_triton():
        raise ImportError("solve_triton needs Triton, which is not installed: pip install triton")
    from fastnode.triton_kernels import trajectories

    _check_field(field, type(trajectories.solve_kernel))
    tableau = _find_tableau(method)
    control = find_controller(controller)
    if control.has_own_rules:
        raise ValueError(
            "controller must be one without rules of its own, whose numbers a kernel can take, "
            f"got {type(control).__name__}"
        )
    for name, value, least in (("rtol", rtol, 0.0), ("atol", atol, 0.0)):
        _check_number(name, value)
        if not value >= least:
            raise ValueError(f"{name} must not be negative or NaN, got {value}")
    if first_step is not None:
        _check_number("first_step", first_step)
        if not 0 < first_step < float("inf"):
            raise ValueError(f"first_step must be positive, got {first_step}")
    if not isinstance(max_num_steps, int) or not 1 <= max_num_steps < 2**31:
        raise ValueError(
            f"max_num_steps must be an integer from 1 to 2**31 - 1, got {max_num_steps!r}"
        )
    interpreted = not isinstance(trajectories.solve_kernel, _compiled_kind())
    _check_state(y0, interpreted)
    direction = int(check_times("ts", ts))
    params = _parameters(args, y0)
    if torch.is_grad_enabled() and any(
        isinstance(x, Tensor) and x.requires_grad for x in (y0, ts, *args)
    ):
        raise ValueError(
            "solve_triton knows no gradients, and y0, ts or args require one: detach them, or use "
            "solve with per_sample=True"
        )
    if ts.numel() == 1:
        zero = torch.zeros(3, y0.shape[0], dtype=torch.int64, device=y0.device)
        status = torch.zeros(y0.shape[0], dtype=torch.int8, device=y0.device)
        return Trajectories(ts, y0.detach().clone()[None], status, *zero)
    ys, counts, status, places = trajectories.solve_trajectories(
        field,
        y0.detach().contiguous(),
        ts.detach().to(device=y0.device, dtype=torch.float64).contiguous(),
        params,
        direction,
        float(rtol),
        float(atol),
        None if first_step is None else float(first_step),
        max_num_steps,
        plain_method(tableau),
        plain_numbers(control),
        throw,
    )
    if places is not None:
        _raise_first(status, places, max_num_steps)
    return Trajectories(ts, ys, status, *counts)


def _compiled_kind() -> type:
    from triton.runtime.jit import JITFunction

    return JITFunction


def _check_field(field: Any, kind: type) -> None:
    if not isinstance(field, kind):
        came = type(field).__name__
        raise TypeError(
            f"field must be a function decorated with triton.jit (a {kind.__name__}), got {came}"
        )


def _find_tableau(method: str) -> Tableau:
    able = [
        name for name, each in ADAPTIVE.items() if each.fsal and each.dense and not each.further
    ]
    if method not in able:
        raise ValueError(f"method must be one of {', '.join(able)}, got {method!r}")
    return ADAPTIVE[method]


def plain_method(tableau: Tableau) -> Any:
    """A tableau as the kernel takes it."""
    from fastnode.triton_kernels.trajectories import Method

    assert tableau.error is not None and tableau.dense is not None

    def numbers(row: Sequence[Any]) -> tuple[float, ...]:
        return tuple(float(x) for x in row)

    return Method(
        tableau.stage_times,
        tuple(numbers(row) for row in tableau.a),
        numbers(tableau.error),
        tuple(numbers(row) for row in tableau.dense),
        tableau.order,
    )


def plain_numbers(control: Controller) -> Any:
    """A controller as the kernel takes it."""
    from fastnode.triton_kernels.trajectories import ControllerNumbers

    return ControllerNumbers(
        control.safety,
        control.ifactor,
        control.dfactor,
        control.smallest,
        control.min_step,
        control.max_step,
        *control.exponents,
    )


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")


def _check_state(y0: Any, interpreted: bool) -> None:
    if not isinstance(y0, Tensor):
        raise TypeError(f"y0 must be a tensor, got {type(y0).__name__}")
    if y0.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"y0 must be float32 or float64, got {y0.dtype}")
    if y0.dim() != 2 or y0.numel() == 0:
        raise ValueError(f"y0 must have shape [B, D] with B, D >= 1, got {tuple(y0.shape)}")
    if not (y0.is_cuda or (interpreted and y0.device.type == "cpu")):
        raise ValueError(
            f"y0 must be on a CUDA device, got {y0.device}; on the CPU solve_triton runs only "
            "under Triton's interpreter (TRITON_INTERPRET=1 set before triton is imported), and "
            "solve with per_sample=True everywhere"
        )


def _parameters(args: Any, y0: Tensor) -> Tensor:
    """[P, B] like y0."""
    if not isinstance(args, (tuple, list)):
        raise TypeError(f"args must be a tuple or a list, got {type(args).__name__}")
    rows = y0.new_empty(len(args), y0.shape[0])
    for i, value in enumerate(args):
        if not isinstance(value, Tensor):
            _check_number(f"args[{i}]", value)
        elif value.shape != y0.shape[:1]:
            raise ValueError(
                f"args[{i}] must be a number or have shape [{y0.shape[0]}], got "
                f"{tuple(value.shape)}"
            )
        elif value.dtype != y0.dtype or value.device != y0.device:
            raise TypeError(
                f"args[{i}] must be {y0.dtype} on {y0.device} as y0 is, got {value.dtype} on "
                f"{value.device}"
            )
        with torch.no_grad():
            rows[i] = value
    return rows


def _raise_first(status: Tensor, places: Tensor, max_num_steps: int) -> None:
    """Raises for the trajectories that failed as the first of them did."""
    failed = status.nonzero()[:, 0]
    if failed.numel() == 0:
        return
    failure = int(status[failed[0]])
    alike = failed[status[failed] == failure]
    times, steps = places[:, alike].tolist()
    raise_failure(Failure(failure), alike.tolist(), times, steps, None, max_num_steps)
