"""Weights of a regulariser over the steps of training."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


class Schedule(ABC):
    """A weight for each training step: ``schedule(step)``, step 0 being the first."""

    @abstractmethod
    def __call__(self, step: int) -> float: ...


@dataclass(frozen=True)
class Constant(Schedule):
    """The same weight at every step."""

    value: float

    def __post_init__(self) -> None:
        check_weight("weight", self.value)

    def __call__(self, step: int) -> float:
        return self.value


@dataclass(frozen=True)
class Exponential(Schedule):
    """start (end / start)^(step / steps), and ``end`` from ``steps`` on."""

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        check_weight("start", self.start, above_zero=True)
        check_weight("end", self.end, above_zero=True)
        _check_steps(self.steps)

    def __call__(self, step: int) -> float:
        return self.start * (self.end / self.start) ** min(step / self.steps, 1.0)


@dataclass(frozen=True)
class Linear(Schedule):
    """start + (end - start) step / steps, and ``end`` from ``steps`` on."""

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        check_weight("start", self.start)
        check_weight("end", self.end)
        _check_steps(self.steps)

    def __call__(self, step: int) -> float:
        return self.start + (self.end - self.start) * min(step / self.steps, 1.0)


@dataclass(frozen=True)
class Inverse(Schedule):
    """start / (1 + rate step)."""

    start: float
    rate: float

    def __post_init__(self) -> None:
        check_weight("start", self.start)
        check_weight("rate", self.rate)

    def __call__(self, step: int) -> float:
        return self.start / (1 + self.rate * step)


def as_schedule(name: str, weight: float | Schedule) -> Schedule:
    """A number as a constant schedule; ValueError or TypeError naming the argument otherwise."""
    if isinstance(weight, Schedule):
        return weight
    check_weight(name, weight)
    return Constant(weight)


def check_weight(name: str, value: float, above_zero: bool = False) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (value > 0 if above_zero else value >= 0) or not math.isfinite(value):
        least = "positive" if above_zero else "at least 0"
        raise ValueError(f"{name} must be {least} and finite, got {value}")


def _check_steps(steps: int) -> None:
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"steps must be an integer of at least 1, got {steps!r}")
