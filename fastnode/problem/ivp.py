"""Checks the arguments of a solve and packs them: state, vector field, times."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastnode import extension
from fastnode.errors import InvalidType, InvalidValue
from fastnode.ops.dispatch import transformed
from fastnode.torch_support.grad_mode import followed
from fastnode.torch_support.warn import WarnOnce, warn

#: A time inside a solve: a Python float (float64), or a 0-dim float64 tensor where it needs a
#: gradient.
Time = float | Tensor
#: A state as the caller sees it.
State = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Layout:
    """How the caller's state lies in the packed tensor; ``shapes`` is None for a single tensor."""

    shapes: tuple[torch.Size, ...] | None

    def pack(self, state: State) -> Tensor:
        if isinstance(state, Tensor):
            return state
        return torch.cat([part.reshape(-1) for part in state])

    def pack_times(self, states: State) -> list[Tensor]:
        """The caller's states at several times, one packed tensor for each."""
        if isinstance(states, Tensor):
            return list(states)
        return [self.pack(state) for state in zip(*states, strict=True)]

    def unpack(self, packed: Tensor) -> State:
        """The inverse of ``pack``; leading dimensions (times) stay in front."""
        if self.shapes is None:
            return packed
        pieces = packed.split([shape.numel() for shape in self.shapes], dim=-1)
        lead = packed.shape[:-1]
        return tuple(
            piece.reshape(lead + shape) for piece, shape in zip(pieces, self.shapes, strict=True)
        )


#: Of one tensor.
LONE = Layout(None)


class VectorField:
    """The caller's func over the packed state, with its results checked."""

    def __init__(
        self,
        func: Callable[..., Any],
        layout: Layout,
        y0: Tensor,
        direction: float,
        args: tuple[Any, ...] = (),
        warn_of_cast: WarnOnce | None = None,
    ):
        self.func = func
        self.args = args
        self.layout = layout
        self.dtype = y0.dtype
        self.time_dtype = y0.dtype.to_real() if y0.is_complex() else y0.dtype
        self.device = y0.device
        self.shape = y0.shape
        self.direction = direction
        #: How often func was called.
        self.evaluations = 0
        #: Of what func returned in another precision.
        self.warn_of_cast = warn_of_cast or WarnOnce()

    def __call__(self, t: Time, y: Tensor, side: int = 0) -> Tensor:
        """dy/dt at (t, y); side -1 or 1 moves t to the adjacent number before or after it in the
        direction of time, so that a field with a jump at t is evaluated on the right side."""
        self.evaluations += 1
        return self.accept(self.func(self.time(t, side), self.layout.unpack(y), *self.args))

    def accept(self, result: Any) -> Tensor:
        """What func returned, packed, once it is found to have the state's form."""
        parts = self.parts(result)
        return parts[0] if self.layout.shapes is None else self.layout.pack(parts)

    def parts(self, result: Any) -> tuple[Tensor, ...]:
        """What func returned, tensor by tensor, once it is found to have the state's form."""
        shapes = self.layout.shapes
        return check_returned(
            result,
            shapes or (self.shape,),
            shapes is not None,
            self.dtype,
            self.device,
            self.warn_of_cast,
        )

    def time(self, t: Time, side: int) -> Tensor:
        """t as func is given it."""
        if not side:
            return time_tensor(t, self.time_dtype, self.device)
        value = time_tensor(t, self.time_dtype, t.device if isinstance(t, Tensor) else None)
        # Detached from forward-mode differentiation too, of which torch 2.11 has no nextafter.
        fixed = value.detach()
        shift = torch.nextafter(fixed, torch.full_like(fixed, side * self.direction * math.inf))
        shift = shift - fixed
        # Non-blocking: the host must not wait for the GPU's queue.
        return (value + shift).to(self.device, non_blocking=True)


def owned(value: Tensor) -> Tensor:
    """What func returned, or a copy if its next call may write over it: a buffer of its own, that
    is a tensor that somebody wrote into, or memory of another library."""
    plain = type(value) in (Tensor, torch.nn.Parameter)
    if not plain or transformed() or torch.compiler.is_compiling():
        return value
    fresh = not value.is_inference() and value._version == 0
    if fresh and (value.requires_grad or value.untyped_storage().resizable()):
        return value
    return value.clone()


def check_returned(
    result: Any,
    shapes: Sequence[tuple[int, ...]],
    is_tuple: bool,
    dtype: torch.dtype,
    device: torch.device,
    warn_of_cast: Callable[[str], None],
    hint: str = "",
) -> tuple[Tensor, ...]:
    """What func returned, tensor by tensor, in the state's dtype; ValueError or TypeError if it
    does not have the state's form. ``hint`` follows the message about a wrong shape.

    Another precision is cast, as in torchdiffeq, with a warning unless autocast asks for it."""

    def check(name: str, value: Any, shape: tuple[int, ...]) -> Tensor:
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must return a tensor, got {type(value).__name__}")
        if value.shape != shape:
            raise ValueError(
                f"{name} must return the state's shape {tuple(shape)}, got "
                f"{tuple(value.shape)}{hint}"
            )
        if value.device != device:
            raise ValueError(f"{name} must return a tensor on {device}, got {value.device}")
        if value.dtype != dtype:
            if value.is_complex() and not dtype.is_complex:
                raise TypeError(f"{name} must return the state's dtype {dtype}, got {value.dtype}")
            precise = value.dtype.is_floating_point or value.dtype.is_complex
            same = precise and torch.finfo(value.dtype).eps == torch.finfo(dtype).eps
            if precise and not same and not torch.is_autocast_enabled(device.type):
                warn_of_cast(
                    f"{name} returns {value.dtype} for a state of {dtype}: it is cast to {dtype}; "
                    "one precision for both saves that"
                )
            return value.to(dtype)
        return owned(value)

    if not is_tuple:
        return (check("func", result, shapes[0]),)
    if not isinstance(result, (tuple, list)) or len(result) != len(shapes):
        came = f"{len(result)}" if isinstance(result, (tuple, list)) else type(result).__name__
        raise TypeError(f"func must return a tuple of {len(shapes)} tensors as y0, got {came}")
    parts = enumerate(zip(result, shapes, strict=True))
    return tuple(check(f"func, element {i},", part, shape) for i, (part, shape) in parts)


def no_callback(t: Time, y: Tensor, h: Time) -> None:
    """The callback where the caller has none."""


@dataclass(frozen=True, eq=False)
class Callbacks:
    """What is called with (t, packed state, signed step): before a step is tried, and once it has
    been accepted or rejected."""

    step: Callable[[Time, Tensor, Time], None] = no_callback
    accept: Callable[[Time, Tensor, Time], None] = no_callback
    reject: Callable[[Time, Tensor, Time], None] = no_callback


NO_CALLBACKS = Callbacks()


class Problem:
    """An initial value problem, checked and packed; not to be changed.

    Made once for each solve, of which the smallest take a few microseconds: so no dataclass, and
    the vector field is wrapped when an engine first calls it.

    Attributes:
        func, args: the caller's.
        layout, y0: the state, packed.
        t: the caller's times, on the CPU, in their own dtype.
        direction: of time, 1.0 or -1.0.
    """

    __slots__ = (
        "_field",
        "_tensors",
        "_times",
        "args",
        "direction",
        "func",
        "layout",
        "mlp",
        "t",
        "traced",
        "y0",
    )

    def __init__(
        self,
        func: Callable[..., Any],
        layout: Layout,
        y0: Tensor,
        t: Tensor,
        direction: float,
        args: tuple[Any, ...] = (),
        field: VectorField | None = None,
        times: list[float] | None = None,
        traced: bool = False,
    ):
        self.func, self.layout, self.y0, self.t = func, layout, y0, t
        self.direction, self.args = direction, args
        self._field, self._times = field, times
        self._tensors: list[Time] | None = None
        #: Whether torch.compile records the solve.
        self.traced = traced
        #: The MLP that func is, once the fused engine has read it.
        self.mlp: Any = None

    @property
    def field(self) -> VectorField:
        if self._field is None:
            self._field = VectorField(self.func, self.layout, self.y0, self.direction, self.args)
        return self._field

    @property
    def times(self) -> list[Time]:
        """Floats, or 0-dim tensors where derivatives with respect to them are wanted: the same ones
        each time, so that a step that ends at an output time is recognised by its end."""
        if self._times is None or self.t.requires_grad or forward_ad._current_level >= 0:
            times = as_times(self.t)
            if not isinstance(times[0], Tensor):
                return times
            if self._tensors is None:
                self._tensors = times
            return self._tensors
        return self._times  # pyright: ignore[reportReturnType]

    def with_(
        self,
        *,
        field: VectorField | None = None,
        y0: Tensor | None = None,
        t: Tensor | None = None,
    ) -> Problem:
        """The same problem with another state, other times or another wrapping of its field."""
        field = self.field if field is None else field
        return Problem(
            field.func,
            field.layout,
            self.y0 if y0 is None else y0,
            self.t if t is None else t,
            field.direction,
            field.args,
            field,
        )


def to_float(t: Time) -> float:
    return t.detach().item() if isinstance(t, Tensor) else t


def time_tensor(t: Time, dtype: torch.dtype, device: torch.device | None) -> Tensor:
    """t as a 0-dim tensor."""
    if isinstance(t, Tensor):
        return t.to(device=device, dtype=dtype, non_blocking=True)
    return torch.full((), t, dtype=dtype, device=device)


def clock_dtype(device: torch.device) -> torch.dtype:
    """float64, but where the device has none."""
    return torch.float32 if device.type == "mps" else torch.float64


def reached(t: Time, target: Time, direction: float) -> bool:
    return (to_float(t) - to_float(target)) * direction >= 0


def as_times(t: Tensor) -> list[Time]:
    """The entries of a 1-d tensor in float64: floats, or 0-dim tensors if derivatives with respect
    to them are wanted or, in a graph that torch.compile traces, they have no value yet."""
    if torch.compiler.is_compiling() or followed(t):
        return list(t.double().cpu().unbind())
    return t.tolist()


def make_problem(
    func: Callable[..., Any], y0: State, t: Tensor, args: tuple[Any, ...] = (), name: str = "t"
) -> Problem:
    """Checks and packs; raises ValueError or TypeError naming the argument before any work.
    ``name`` is that of the times."""
    if not callable(func):
        raise TypeError(f"func must be callable, got {type(func).__name__}")
    if not isinstance(args, tuple):
        raise TypeError(f"args must be a tuple, got {type(args).__name__}")
    traced = torch.compiler.is_compiling()
    if extension.AVAILABLE and not traced:
        # The checks below in one call: of a plain state and finite, ordered times on the CPU.
        times = extension.native().check_problem(y0, t)
        if times is not None:
            direction = 1.0 if times[-1] >= times[0] else -1.0
            return Problem(func, LONE, y0, t, direction, args, times=times)  # pyright: ignore
    layout = _check_state(y0)
    direction = check_times(name, t)
    packed = layout.pack(y0)
    if t.device != packed.device and t.device.type != "cpu":
        warn(f"{name} is on {t.device}, y0 on {packed.device}: {name} is moved")
    return Problem(func, layout, packed, t.cpu(), direction, args, traced=traced)


def _check_state(y0: State) -> Layout:
    if not isinstance(y0, (Tensor, tuple)):
        raise InvalidType(f"y0 must be a tensor or a tuple of tensors, got {type(y0).__name__}")
    parts: list[Any] = list(y0) if isinstance(y0, tuple) else [y0]
    if not parts:
        raise ValueError("y0 must hold at least one tensor, got an empty tuple")
    for i, part in enumerate(parts):
        if not isinstance(part, Tensor):
            raise TypeError(f"y0[{i}] must be a tensor, got {type(part).__name__}")
        if part.device != parts[0].device:
            raise TypeError(f"y0[{i}] must be on {parts[0].device} as y0[0] is, got {part.device}")
    dtype = functools.reduce(torch.promote_types, (part.dtype for part in parts))
    if not (dtype.is_floating_point or dtype.is_complex):
        raise TypeError(f"y0 must be floating or complex, got {dtype}")
    return Layout(tuple(part.shape for part in parts)) if isinstance(y0, tuple) else LONE


def check_times(name: str, t: Any) -> float:
    """Checks a sequence of times and returns the direction of time, 1.0 or -1.0.

    Times in a graph that torch.compile traces have no values to check and no direction; solves
    that need them run uncompiled.
    """
    if not isinstance(t, Tensor):
        raise InvalidType(f"{name} must be a tensor, got {type(t).__name__}")
    if not t.is_floating_point():
        raise TypeError(f"{name} must be floating, got {t.dtype}")
    if t.dim() != 1 or t.numel() == 0:
        raise InvalidValue(f"{name} must have shape [T] with T >= 1, got {tuple(t.shape)}")
    if torch.compiler.is_compiling():
        return 1.0
    values = t.tolist()
    if not all(map(math.isfinite, values)):
        raise InvalidValue(f"{name} must be finite, got {values}")
    # Plain numbers: for a few times one tensor op costs more than all comparisons.
    if all(map(operator.lt, values, values[1:])):
        return 1.0
    if all(map(operator.gt, values, values[1:])):
        return -1.0
    raise InvalidValue(f"{name} must be strictly increasing or decreasing, got {values}")
