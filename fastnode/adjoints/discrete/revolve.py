"""Which states of the forward pass are kept, and how the others are found again.

Source: A. Griewank, A. Walther, Algorithm 799: revolve, ACM Trans. Math. Softw. 26 (2000). The
number of steps is not known while an adaptive solve runs, so the forward pass keeps states at equal
distances: when all slots are taken, every other one is given up and the distance doubles. That
spares the additional forward pass of a schedule that must know the number. The backward pass
divides each piece between two kept states binomially, with the slots that have become free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import comb
from typing import Any

#: What the steps of a solve begin with.
State = tuple[Any, ...]


@dataclass(frozen=True)
class Revolve:
    """Binomial checkpointing: gradients of any solve with a fixed number of states in memory.

    Args:
        slots: states kept beside the initial one, at least 1. With s of them and n steps each step
            is recomputed about as often as the smallest r has (s + r)! / (s! r!) >= n.

    Raises:
        ValueError, TypeError: slots is not an integer of at least 1.
    """

    slots: int

    def __post_init__(self) -> None:
        if isinstance(self.slots, bool) or not isinstance(self.slots, int):
            raise TypeError(f"slots must be an integer, got {type(self.slots).__name__}")
        if self.slots < 1:
            raise ValueError(
                f"slots must be at least 1, got {self.slots}; adjoint='reversible' keeps no states"
            )


class Keeper:
    """The states that a forward pass keeps: all, or at most ``slots``. The initial one is not
    counted and not among them."""

    def __init__(self, slots: int | None):
        self.slots, self.distance = slots, 1
        self.kept: dict[int, State] = {}

    def offer(self, n: int, state: Callable[[], State]) -> None:
        """Step n begins; the state is asked for if it is to be kept."""
        if n == 0 or n % self.distance:
            return
        if self.slots is not None and len(self.kept) == self.slots:
            self.distance *= 2
            for other in [m for m in self.kept if m % self.distance]:
                del self.kept[other]
            if n % self.distance:
                return
        self.kept[n] = state()


def reverse(
    kept: dict[int, State],
    steps: int,
    slots: int | None,
    advance: Callable[[int, int, State], State],
    vjp: Callable[[int, State], None],
) -> None:
    """Calls vjp(n, state) for the steps n = steps - 1, ..., 0.

    Args:
        kept: states by step, that of step 0 included; given up from the last to the first.
        advance: (m, n, the state at step m) -> the state at step n.
    """
    end = steps
    while kept:
        start = max(kept)
        state = kept.pop(start)
        free = end - start if slots is None else slots - max(0, len(kept) - 1) - (start > 0)
        _reverse(start, end, state, free, advance, vjp)
        end = start


def _reverse(
    start: int, end: int, state: State, free: int, advance: Callable, vjp: Callable
) -> None:
    """From ``end`` to ``start``, whose state is there, with room for ``free`` more."""
    while end - start > 1:
        middle = start + split(end - start, free)
        later = advance(start, middle, state)
        if free:
            _reverse(middle, end, later, free - 1, advance, vjp)
            del later
            end = middle
        else:
            vjp(middle, later)
            end = middle
    if end > start:
        vjp(start, state)


def split(length: int, free: int) -> int:
    """After how many of ``length`` steps the next state is kept, with room for ``free``.

    With s = free + 1 states, the first included, and each step advanced over at most r times,
    b(s, r) = (s + r)! / (s! r!) steps can be reversed; both parts must stay within that.
    """
    if free == 0:
        return length - 1
    s, r = free + 1, 1
    while comb(s + r, s) < length:
        r += 1
    most, rest = comb(s + r - 1, s), comb(s + r - 1, s - 1)
    return min(most, max(length - rest, comb(s + r - 2, s) if r > 1 else 1))
