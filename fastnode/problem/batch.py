"""A batch of initial value problems for per-sample stepping: checked, one row for each sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastnode.ops.rk_error import check_positive
from fastnode.ops.rk_rows import rk_error_rows
from fastnode.problem.ivp import State, check_returned, check_times, clock_dtype, make_problem
from fastnode.torch_support.warn import WarnOnce

_HINT = (
    "; with per_sample=True func sees only the samples that still run, and tensors with a row for "
    "each sample must be passed in args"
)


@dataclass(frozen=True)
class SampleLayout:
    """How each sample's state lies in its row; ``shapes`` are those of one sample."""

    shapes: tuple[torch.Size, ...]
    is_tuple: bool

    @property
    def sizes(self) -> list[int]:
        return [shape.numel() for shape in self.shapes]

    def pack(self, state: State) -> Tensor:
        parts = [state] if isinstance(state, Tensor) else list(state)
        rows = [
            x.reshape(x.shape[0], n).contiguous() for x, n in zip(parts, self.sizes, strict=True)
        ]
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)

    def unpack(self, rows: Tensor) -> State:
        """The inverse of ``pack``; all dimensions but the last stay in front."""
        lead = rows.shape[:-1]
        if not self.is_tuple:
            return rows.reshape(lead + self.shapes[0])
        pieces = rows.split(self.sizes, dim=-1)
        return tuple(x.reshape(lead + shape) for x, shape in zip(pieces, self.shapes, strict=True))


class SampleField:
    """The caller's func over packed rows, with its results checked."""

    def __init__(
        self,
        func: Callable[..., Any],
        layout: SampleLayout,
        y0: Tensor,
        warn_of_cast: WarnOnce | None = None,
    ):
        self.func, self.layout = func, layout
        self.dtype, self.device = y0.dtype, y0.device
        self.time_dtype = y0.dtype.to_real()
        #: Of what func returned in another precision.
        self.warn_of_cast = warn_of_cast or WarnOnce()

    def __call__(
        self, t: Tensor, y: Tensor, args: Sequence[Any], before: Tensor | None = None
    ) -> Tensor:
        """dy/dt [b, D] at t [b] and y [b, D]; with ``before``, the directions of time [b], at the
        last number before each t, so that a field with a jump there is evaluated on this side."""
        t = t.to(self.time_dtype)
        if before is not None:
            fixed = t.detach()
            t = t + (torch.nextafter(fixed, (-math.inf * before.detach()).to(t.dtype)) - fixed)
        result = self.func(t, self.layout.unpack(y), *args)
        return self.layout.pack(self.checked(result, y.shape[0]))

    def checked(self, result: Any, count: int) -> State:
        """What func returned for ``count`` samples, or an error that says what is wrong with it."""
        shapes = [(count, *shape) for shape in self.layout.shapes]
        is_tuple = self.layout.is_tuple
        parts = check_returned(
            result, shapes, is_tuple, self.dtype, self.device, self.warn_of_cast, _HINT
        )
        return parts if is_tuple else parts[0]


@dataclass(frozen=True, eq=False)
class Tolerances:
    """rtol and atol, each a number or one per sample, [b]."""

    rtol: float | Tensor
    atol: float | Tensor

    def take(self, rows: Tensor) -> Tolerances:
        pair = (x[rows] if isinstance(x, Tensor) else x for x in (self.rtol, self.atol))
        return Tolerances(*pair)

    def norm(
        self,
        layout: SampleLayout,
        y0: Tensor,
        y1: Tensor,
        k: Sequence[Tensor],
        weights: Sequence[float],
        h: Tensor,
    ) -> Tensor:
        """The norm of ``h sum_j weights_j k_j`` relative to the tolerances, [b], in h's dtype.

        The root mean square over a sample's elements; for a tuple the largest of its parts.
        """
        if len(layout.shapes) == 1:
            return rk_error_rows(y0, y1, k, weights, h, self.rtol, self.atol).to(h)
        parts = zip(*(x.split(layout.sizes, dim=1) for x in (y0, y1, *k)), strict=True)
        each = [
            rk_error_rows(a, b, derivatives, weights, h, self.rtol, self.atol)
            for a, b, *derivatives in parts
        ]
        return torch.stack(each).amax(dim=0).to(h)


@dataclass(frozen=True, eq=False)
class SampleProblem:
    """B initial value problems, checked and packed."""

    field: SampleField
    #: [B, D]
    y0: Tensor
    #: [B, T] on the state's device, in float64 where the device has it.
    ts: Tensor
    #: [B], 1 or -1.
    direction: Tensor
    args: tuple[Any, ...]

    def take_args(self, args: Sequence[Any], rows: Tensor) -> tuple[Any, ...]:
        """``args``, which belong to the samples that ``rows`` indexes, for the rows alone: tensors
        with one entry for each sample are indexed."""
        pairs = zip(args, self.args, strict=True)
        return tuple(x[rows] if self._per_sample(full) else x for x, full in pairs)

    def _per_sample(self, arg: Any) -> bool:
        return isinstance(arg, Tensor) and arg.dim() > 0 and arg.shape[0] == self.y0.shape[0]


def make_samples(
    func: Callable[..., Any], y0: State, ts: Tensor, args: tuple[Any, ...]
) -> SampleProblem:
    """Checks and packs; raises ValueError or TypeError naming the argument before any work."""
    if not isinstance(ts, Tensor):
        raise TypeError(f"ts must be a tensor, got {type(ts).__name__}")
    if ts.dim() not in (1, 2) or ts.numel() == 0:
        raise ValueError(f"ts must have shape [T] or [B, T] with T >= 1, got {tuple(ts.shape)}")
    first = ts if ts.dim() == 1 else ts[0]
    check_times("ts", first)
    single = make_problem(func, y0, first)
    parts = [y0] if isinstance(y0, Tensor) else list(y0)
    counts = {part.shape[0] if part.dim() else None for part in parts}
    if len(counts) > 1 or None in counts or 0 in counts:
        raise ValueError(
            "with per_sample=True y0 must have shape [B, ...] with one B >= 1 for all of it, got "
            f"{', '.join(str(tuple(part.shape)) for part in parts)}"
        )
    batch = parts[0].shape[0]
    if ts.dim() == 2 and ts.shape[0] != batch:
        raise ValueError(f"ts must have shape [T] or [{batch}, T], got {tuple(ts.shape)}")
    rows = ts.expand(batch, -1) if ts.dim() == 1 else ts
    layout = SampleLayout(tuple(part.shape[1:] for part in parts), single.layout.shapes is not None)
    packed = layout.pack(y0)
    times = rows.to(device=packed.device, dtype=clock_dtype(packed.device))
    return SampleProblem(
        SampleField(func, layout, packed), packed, times, _directions(times.detach()), tuple(args)
    )


def _directions(times: Tensor) -> Tensor:
    """1 or -1 for each row of strictly monotone times."""
    differences = times.diff(dim=1)
    forward, backward = (differences > 0).all(dim=1), (differences < 0).all(dim=1)
    wrong = ~(times.isfinite().all(dim=1) & (forward | backward))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            "ts must be finite and strictly increasing or decreasing for each sample, got "
            f"{times[row].tolist()} for sample {row}"
        )
    return torch.where(forward, 1.0, -1.0).to(times)


def sample_tolerances(rtol: Any, atol: Any, y0: Tensor) -> Tolerances:
    """Checked tolerances."""
    values = []
    for name, value in (("rtol", rtol), ("atol", atol)):
        checked = _per_sample_number(name, value, y0)
        if not bool((torch.as_tensor(checked) >= 0).all()):
            raise ValueError(f"{name} must not be negative or NaN, got {value}")
        values.append(checked)
    check_positive(*values)
    return Tolerances(*values)


def sample_first_step(value: Any, y0: Tensor) -> float | Tensor | None:
    if value is None:
        return None
    checked = _per_sample_number("first_step", value, y0)
    sizes = torch.as_tensor(checked)
    if not bool(((sizes > 0) & sizes.isfinite()).all()):
        raise ValueError(f"first_step must be positive, got {value}")
    return checked


def _per_sample_number(name: str, value: Any, y0: Tensor) -> float | Tensor:
    """A number, or a tensor [B] in float64."""
    if type(value) in (int, float):
        return float(value)
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(value).__name__
        raise TypeError(f"{name} must be a number or a tensor, got {kind}") from error
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} must be real, got {tensor.dtype}")
    if tensor.requires_grad:
        raise ValueError(f"{name} must not require a gradient")
    if tensor.dim() > 0 and tensor.shape != y0.shape[:1]:
        raise ValueError(
            f"with per_sample=True {name} must be a number or have shape [{y0.shape[0]}], got "
            f"{tuple(tensor.shape)}"
        )
    return float(tensor) if tensor.dim() == 0 else tensor.to(y0.device, torch.float64)
