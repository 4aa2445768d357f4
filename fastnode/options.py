"""The ``options`` of a solve, checked; names, defaults and meaning are torchdiffeq's."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastnode.problem import check_times


@dataclass
class AdaptiveOptions:
    first_step: float | None = None
    min_step: float = 0.0
    max_step: float = math.inf
    safety: float = 0.9
    ifactor: float = 10.0
    dfactor: float = 0.2
    max_num_steps: int = 2**31 - 1
    norm: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        for name in ("min_step", "max_step", "safety", "ifactor", "dfactor"):
            setattr(self, name, _number(name, getattr(self, name)))
        if self.first_step is not None:
            self.first_step = _number("first_step", self.first_step)
            if not 0 < self.first_step < math.inf:
                raise ValueError(f"first_step must be positive, got {self.first_step}")
        if not 0 <= self.min_step <= self.max_step:
            raise ValueError(
                "min_step and max_step must satisfy 0 <= min_step <= max_step, "
                f"got {self.min_step} and {self.max_step}"
            )
        if not 0 < self.dfactor < 1 <= self.ifactor:
            raise ValueError(
                "dfactor and ifactor must satisfy 0 < dfactor < 1 <= ifactor, "
                f"got {self.dfactor} and {self.ifactor}"
            )
        if not 0 < self.safety < math.inf:
            raise ValueError(f"safety must be positive, got {self.safety}")
        self.max_num_steps = int(_number("max_num_steps", self.max_num_steps))
        _check_norm(self.norm)


@dataclass
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
            raise ValueError(
                f"grid_constructor must return a grid from t[0] = {float(t[0]):g} to t[-1] = "
                f"{float(t[-1]):g}, got one from {float(grid[0]):g} to {float(grid[-1]):g}"
            )
        return grid


def _even_grid(t: Tensor, step_size: float) -> Tensor:
    """Steps of one size from t[0] on; the last one ends at t[-1] and may be shorter."""
    start, end = t[0], t[-1]
    direction = 1 if bool(end > start) else -1
    # In t's own precision 0.3 / 0.1 is 3: no step of the size of a rounding error is left over.
    steps = int(torch.ceil((end - start).abs() / step_size).item())
    inner = torch.arange(steps, dtype=t.dtype, device=t.device) * (step_size * direction) + start
    return torch.cat([inner, end.reshape(1)])


T = TypeVar("T", AdaptiveOptions, FixedOptions)


def parse(kind: type[T], method: str, options: Mapping[str, Any] | None) -> T:
    """Options as a checked object; those the method does not have are named in a warning."""
    if options is None:
        return kind()
    if not isinstance(options, Mapping):
        raise TypeError(f"options must be a dict, got {type(options).__name__}")
    known = {field.name for field in fields(kind)}
    unknown = sorted(set(options) - known)
    if unknown:
        warnings.warn(
            f"method {method!r} ignores the unexpected options {', '.join(unknown)}; "
            f"it has {', '.join(sorted(known))}",
            stacklevel=3,
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


def _check_norm(norm: Any) -> None:
    if norm is not None and not callable(norm):
        raise TypeError(f"norm must be callable, got {type(norm).__name__}")
