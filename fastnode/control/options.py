"""The ``options`` of a solve, checked; names, defaults and meaning are torchdiffeq's."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from fastnode.control.controllers import Controller
from fastnode.errors import InvalidValue
from fastnode.problem.ivp import check_times
from fastnode.torch_support.grad_mode import followed
from fastnode.torch_support.warn import warn


class Stop(NamedTuple):
    """A time at which a step must end; after a jump the field is evaluated again just past it."""

    time: float
    jump: bool = False


@dataclass(eq=False)
class AdaptiveOptions:
    first_step: float | None = None
    min_step: float = 0.0
    max_step: float = math.inf
    safety: float = 0.9
    ifactor: float = 10.0
    dfactor: float = 0.2
    max_num_steps: int = 2**31 - 1
    norm: Callable[[Any], Any] | None = None
    step_t: Tensor | Sequence[float] | None = None
    jump_t: Tensor | Sequence[float] | None = None
    #: Accepted and unused: times are float64.
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        for name in ("min_step", "max_step", "safety", "ifactor", "dfactor"):
            setattr(self, name, _number(name, getattr(self, name)))
        if self.first_step is not None:
            self.first_step = _number("first_step", self.first_step)
            if not 0 < self.first_step < math.inf:
                raise ValueError(f"first_step must be positive, got {self.first_step}")
        self.controller = Controller(
            self.safety,
            self.ifactor,
            self.dfactor,
            self.min_step,
            self.max_step,
            keeps_accepted=True,
        )
        self.max_num_steps = int(_number("max_num_steps", self.max_num_steps))
        _check_norm(self.norm)
        self._steps = _times("step_t", self.step_t)
        self._jumps = _times("jump_t", self.jump_t)
        if not isinstance(self.dtype, torch.dtype) or not self.dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating torch.dtype, got {self.dtype!r}")

    def stops(self, start: float, end: float, direction: float) -> list[Stop]:
        """step_t and jump_t strictly between start and end, in the order of the solve."""
        stops = [Stop(t) for t in self._steps] + [Stop(t, True) for t in self._jumps]
        ahead = sorted(
            (stop for stop in stops if (stop.time - start) * direction >= 0),
            key=lambda stop: stop.time * direction,
        )
        for stop, following in pairwise(ahead):
            if stop.time == following.time:
                raise ValueError(
                    f"step_t and jump_t must not hold a time twice, got {stop.time:g} twice"
                )
        return [stop for stop in ahead if start != stop.time and (end - stop.time) * direction > 0]


@dataclass(eq=False)
class FixedOptions:
    step_size: float | None = None
    grid_constructor: Callable[..., Tensor] | None = None
    interp: str = "linear"
    perturb: bool = False
    #: Accepted by every method, used by adaptive ones.
    norm: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        if self.step_size is not None:
            self.step_size = _number("step_size", self.step_size)
            if not 0 < self.step_size < math.inf:
                raise ValueError(f"step_size must be positive, got {self.step_size}")
            if self.grid_constructor is not None:
                raise ValueError("step_size and grid_constructor exclude each other, got both")
        if self.interp not in ("linear", "cubic"):
            raise ValueError(f"interp must be 'linear' or 'cubic', got {self.interp!r}")
        _check_norm(self.norm)

    @property
    def steps_between_times(self) -> bool:
        """Whether each step leads from one output time to the next."""
        return self.step_size is None and self.grid_constructor is None

    def grid(self, func: Callable[..., Any], y0: Any, t: Tensor) -> Tensor:
        """The times at which steps begin and end, in the order of t and from its first to its last
        entry."""
        if self.step_size is not None and len(t) > 1:
            return _even_grid(t, self.step_size)
        if self.grid_constructor is None:
            return t
        grid = self.grid_constructor(func, y0, t)
        check_times("what grid_constructor returns", grid)
        if float(grid[0]) != float(t[0]) or float(grid[-1]) != float(t[-1]):
            raise InvalidValue(
                f"grid_constructor must return a grid from t[0] = {float(t[0]):g} to t[-1] = "
                f"{float(t[-1]):g}, got one from {float(grid[0]):g} to {float(grid[-1]):g}"
            )
        return grid


def _even_grid(t: Tensor, step_size: float) -> Tensor:
    """Steps of one size from t[0] on; the last one ends at t[-1] and may be shorter."""
    # In t's own precision 0.3 / 0.1 is 3: no step of the size of a rounding error is left over.
    code = _CODES.get(t.dtype)
    if code is not None and not torch.compiler.is_compiling() and not followed(t):
        return torch.frombuffer(_rounded_grid(t.tolist(), step_size, code), dtype=t.dtype)
    start, end = t[:1], t[-1:]
    steps = ((end - start) / step_size).item()
    offsets = torch.arange(math.ceil(abs(steps)), dtype=t.dtype, device=t.device)
    return torch.cat([offsets * math.copysign(step_size, steps) + start, end])


#: Of dtypes whose numbers Python can round to.
_CODES = {torch.float32: "f", torch.float64: "d"}


def _rounded_grid(t: Sequence[float], step_size: float, code: str) -> array[float]:
    """_even_grid on plain numbers, each result rounded as a tensor of that type would round it: a
    dozen small ops on tensors cost as much as several evaluations of a small field."""
    if code == "d":
        return array(code, even_grid(t[0], t[-1], step_size))

    def rounded(*numbers: float) -> array[float]:
        return array(code, numbers)

    size, span = rounded(step_size, t[-1] - t[0])
    (steps,) = rounded(span / size)
    signed = math.copysign(size, steps)
    offsets = rounded(*(i * signed for i in range(math.ceil(abs(steps)))))
    return rounded(*(offset + t[0] for offset in offsets), t[-1])


def even_grid(start: float, end: float, step_size: float) -> list[float]:
    """Steps of one size from start on, in float64; the last one ends at end and may be shorter."""
    steps = (end - start) / step_size
    signed = math.copysign(step_size, steps)
    return [*(i * signed + start for i in range(math.ceil(abs(steps)))), end]


@dataclass(eq=False)
class ImplicitOptions(FixedOptions):
    #: Newton iterations for each system of stages.
    max_iters: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        self.max_iters = _positive("max_iters", self.max_iters)


@dataclass(eq=False)
class AdamsOptions(FixedOptions):
    #: None for the method's own default.
    max_order: int | None = None
    #: Iterations of the corrector in a step.
    max_iters: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.max_iters = _positive("max_iters", self.max_iters)
        if self.max_order is None:
            return
        self.max_order = _positive("max_order", self.max_order)
        if self.max_order > 12:
            raise InvalidValue(f"max_order must be at most 12, got {self.max_order}")
        if self.max_order < 4:
            warn(f"max_order {self.max_order} is below 4: every step is one of rk4")

    def order(self, explicit: bool) -> int:
        """max_order, by default 12 for the implicit method and 5 for the explicit one.

        Adams-Bashforth of order 4 is stable for -h lambda up to 0.3, and each further order about
        halves that: torchdiffeq's default, order 11, diverges for nearly every step in use.
        """
        return self.max_order if self.max_order is not None else 5 if explicit else 12


@dataclass(eq=False)
class ScipyOptions:
    #: A name or class that scipy.integrate.solve_ivp takes as its method.
    solver: Any = "LSODA"
    min_step: float = 0.0
    max_step: float = math.inf
    #: Accepted by every method, used by adaptive ones.
    norm: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        self.min_step = _number("min_step", self.min_step)
        self.max_step = _number("max_step", self.max_step)
        if not 0 <= self.min_step <= self.max_step:
            raise ValueError(
                "min_step and max_step must satisfy 0 <= min_step <= max_step, "
                f"got {self.min_step} and {self.max_step}"
            )
        _check_norm(self.norm)


T = TypeVar("T", bound="AdaptiveOptions | FixedOptions | ScipyOptions")
#: The options of each kind; torch.compile cannot trace ``fields`` of a class.
_NAMES: dict[type, set[str]] = {
    kind: {field.name for field in fields(kind)}
    for kind in (AdaptiveOptions, FixedOptions, ImplicitOptions, AdamsOptions, ScipyOptions)
}


def parse(kind: type[T], method: str, options: Mapping[str, Any] | None) -> T:
    """Options as a checked object; those the method does not have are named in a warning."""
    if options is None:
        return kind()
    if not isinstance(options, Mapping):
        raise TypeError(f"options must be a dict, got {type(options).__name__}")
    known = _NAMES[kind]
    unknown = sorted(set(options) - known)
    if unknown:
        warn(
            f"method {method!r} ignores the unexpected options {', '.join(unknown)}; "
            f"it has {', '.join(sorted(known))}"
        )
    return kind(**{name: value for name, value in options.items() if name in known})


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a number, got {type(value).__name__}") from error
    if math.isnan(number):
        raise ValueError(f"{name} must be a number, got NaN")
    return number


def _positive(name: str, value: Any) -> int:
    number = _number(name, value)
    if number != int(number) or number < 1:
        raise ValueError(f"{name} must be a whole number above 0, got {value}")
    return int(number)


def _times(name: str, value: Any) -> list[float]:
    if value is None:
        return []
    try:
        times = torch.as_tensor(value).detach().double().flatten().tolist()
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(value).__name__
        raise TypeError(f"{name} must be a tensor of times, got {kind}") from error
    if any(math.isnan(t) for t in times):
        raise ValueError(f"{name} must hold times, got NaN")
    return times


def _check_norm(norm: Any) -> None:
    if norm is not None and not callable(norm):
        raise TypeError(f"norm must be callable, got {type(norm).__name__}")
