"""Events of ``fastnode.solve``: several, in one direction or both, terminal or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastnode.events import search as events
from fastnode.problem.ivp import Problem, clock_dtype, to_float
from fastnode.solution import EventRecord


@dataclass(frozen=True)
class Event:
    """Where a function of time and state changes its sign.

    Args:
        fn: takes t and the state as func does, without its further arguments; returns a real
            tensor, of which any element may change its sign.
        terminal: whether the solve ends there.
        direction: 1 for changes from negative to positive only, -1 for the others, 0 for both.

    Raises:
        TypeError, ValueError: fn is not callable, or direction none of these.
    """

    fn: Callable[[Tensor, Any], Tensor]
    terminal: bool = True
    direction: int = 0

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise TypeError(f"an event's fn must be callable, got {type(self.fn).__name__}")
        if self.direction not in (-1, 0, 1):
            raise ValueError(f"an event's direction must be -1, 0 or 1, got {self.direction!r}")


def as_events(value: Any) -> tuple[Event, ...]:
    """None, a function, an Event, or a sequence of these."""
    if value is None:
        return ()
    listed: Sequence[Any] = value if isinstance(value, (tuple, list)) else (value,)
    return tuple(each if isinstance(each, Event) else Event(each) for each in listed)


class EventWatcher:
    """Looks for events in each accepted step of a solve."""

    def __init__(self, problem: Problem, wanted: Sequence[Event]):
        self.problem, self.wanted = problem, wanted
        field = problem.field
        dtype = clock_dtype(field.device)
        resolution = torch.finfo(field.time_dtype).eps
        functions = [
            events.EventFunction(e.fn, problem.layout, dtype, field.device) for e in wanted
        ]
        self.searches = [events.SignSearch(function, resolution) for function in functions]
        self.found: list[list[events.FoundEvent]] = [[] for _ in wanted]
        #: The step in which each of them lies.
        self.within: list[list[int]] = [[] for _ in wanted]
        self._steps = 0

    def step(self, step: Any) -> float | None:
        """Records the events in the step; the time of the first terminal event, if there is one."""
        piece = events.SolutionPiece(step.t, step.t1, step.y1, step.at)
        fresh = [self._within(i, piece) for i in range(len(self.wanted))]
        direction = self.problem.field.direction
        ends = [
            each[-1].t for e, each in zip(self.wanted, fresh, strict=True) if e.terminal and each
        ]
        end = min(ends, key=lambda t: t * direction, default=None)
        for i, each in enumerate(fresh):
            kept = [f for f in each if end is None or (end - f.t) * direction >= 0]
            self.found[i] += kept
            self.within[i] += [self._steps] * len(kept)
        self._steps += 1
        return end

    def all_found(self) -> Iterator[tuple[int, events.FoundEvent]]:
        """(step, event found in it), for one event function after the other."""
        for steps, found in zip(self.within, self.found, strict=True):
            yield from zip(steps, found, strict=True)

    def replace_states(self, states: Iterator[Tensor]) -> None:
        """Replaces the states of the events found, in the order of ``all_found``."""
        self.found = [[f._replace(y=next(states)) for f in found] for found in self.found]

    def _within(self, index: int, piece: events.SolutionPiece) -> list[events.FoundEvent]:
        """The changes in a piece, the last of which ends the solve if the event is terminal."""
        event, search = self.wanted[index], self.searches[index]
        noted: list[events.FoundEvent] = []
        while (found := search.within(piece)) is not None:
            rose = search.passed(found)
            if event.direction in (0, rose):
                noted.append(found)
                if event.terminal:
                    break
            if found.t in (to_float(piece.t), to_float(piece.t1)):
                break
            piece = piece._replace(t=found.t)
        return noted

    def records(self) -> list[EventRecord]:
        """The events found, with gradients of times and states if the event function has them."""
        return [
            self._record(search.event, found)
            for search, found in zip(self.searches, self.found, strict=True)
        ]

    def _record(
        self, event: events.EventFunction, found: Sequence[events.FoundEvent]
    ) -> EventRecord:
        problem, field = self.problem, self.problem.field
        dtype = clock_dtype(field.device)
        linked = [
            events.attach_gradients(
                field, event, torch.tensor(f.t, dtype=dtype, device=field.device), f.y, f.index
            )
            for f in found
        ]
        times = [t for t, _ in linked]
        states = [y for _, y in linked]
        empty = problem.y0.new_empty(0, *problem.y0.shape)
        return EventRecord(
            torch.stack(times) if times else torch.empty(0, dtype=dtype, device=field.device),
            problem.layout.unpack(torch.stack(states) if states else empty),
        )
