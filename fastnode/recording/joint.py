"""Runs the steps of a solve and records what the caller asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastnode.control.stiffness import Stiffness
from fastnode.engines.reference.fixed import GridStep
from fastnode.engines.reference.step import Step
from fastnode.errors import SolverError
from fastnode.events.watch import Event, EventWatcher
from fastnode.ops.rk_stage import FLOATING
from fastnode.problem.ivp import Problem, Time, as_times, reached, to_float
from fastnode.solution import Solution, Steps
from fastnode.tableaus import Tableau


class Recording:
    """The record of one solve: outputs, steps, events."""

    def __init__(
        self,
        problem: Problem,
        tableau: Tableau | None,
        save: str,
        events: Sequence[Event],
        on_step: Callable[[Any], Any] | None = None,
    ):
        self.problem, self.save, self.on_step = problem, save, on_step
        self.watch = EventWatcher(problem, events)
        self.tableau, self.stiffness = tableau, Stiffness(tableau)
        self.outputs = [problem.y0]
        #: The step in which each further output lies.
        self.within: list[int] = []
        self.end = to_float(problem.times[0])
        self.times = [self.end]
        self.errors: list[float] = []
        self.stiff: list[float | Tensor] = []
        self.states = [problem.y0]
        self.steps: list[Any] = []
        #: Whether ``steps`` are those of the stepper; if not, they recompute their stages.
        self.keeps_derivatives = save == "dense"
        self.status = "finished"
        self.evaluations = self.rejected = 0

    def run(self, make_stepper: Callable[[], Any], throw: bool) -> None:
        """Steps up to the last of the problem's times; a failure is raised or kept as status."""
        stepper = None
        try:
            stepper = make_stepper()
            if self._stepper_records(stepper):
                self._integrate(stepper)
            else:
                self._advance(stepper)
        except SolverError as error:
            if throw:
                raise
            self.status = type(error).__name__
        for step in self.steps if self.keeps_derivatives else ():
            # Further stages of dense output are evaluated here and not in Solution.evaluate.
            step.at((to_float(step.t) + to_float(step.t1)) / 2)
        if stepper is not None:
            # Only its counts are kept: the stepper holds the stages of its last step.
            self.evaluations, self.rejected = getattr(stepper, "evaluations", 0), stepper.rejected
        missing = len(self.problem.times) - len(self.outputs)
        self.outputs += [torch.full_like(self.problem.y0, torch.nan)] * missing

    def _stepper_records(self, stepper: Any) -> bool:
        """Whether the stepper itself can record all that was asked for."""
        y = self.problem.y0
        asked = self.save != "times" or self.watch.wanted or self.on_step is not None
        return (
            (y.is_cpu or y.is_cuda)
            and y.dtype in FLOATING
            and not asked
            and hasattr(stepper, "record")
        )

    def _integrate(self, stepper: Any) -> None:
        stepper.record(self.stiffness.weights)
        try:
            stepper.integrate(self.problem.times, all_together=True)
        finally:
            self.outputs = list(stepper.outputs().unbind())
            self.times += stepper.ends
            self.errors = stepper.errors
            self.stiff = stepper.stiffness or [math.nan] * len(self.errors)
            self.end = self.times[-1]

    def _advance(self, stepper: Any) -> None:
        times, direction = self.problem.times, self.problem.field.direction
        while len(self.outputs) < len(times):
            step = stepper.advance()
            self._add(step)
            event = self.watch.step(step)
            reach = step.t1 if event is None else event
            while len(self.outputs) < len(times):
                target = times[len(self.outputs)]
                if not reached(reach, target, direction):
                    break
                self.outputs.append(step.at(target))
                self.within.append(len(self.errors) - 1)
            if event is not None:
                self.status, self.end = "event", event
                return
            # The next step may reuse the memory of this one's stages.
            del step

    def _add(self, step: Any) -> None:
        self.end = to_float(step.t1)
        self.times.append(self.end)
        self.errors.append(step.error)
        known = getattr(step, "stiffness", None)
        self.stiff.append(self.stiffness(step.k) if known is None else known)
        if self.save != "times":
            self.states.append(step.y1)
        if self.keeps_derivatives:
            self.steps.append(step)
        if self.on_step is not None:
            self.on_step(step)

    def rewrite(self, problem: Problem, known: Iterator[Tensor]) -> None:
        """Replaces the inner problem, in which nothing requires a gradient, by the caller's, and
        the outputs, states and states of events by ``known``, which have gradients."""
        self.outputs[0] = self.states[0] = problem.y0
        for j in range(1, len(self.within) + 1):
            self.outputs[j] = next(known)
        for n in range(1, len(self.states)):
            self.states[n] = next(known)
        self.watch.replace_states(known)
        self.problem = self.problem.with_(y0=problem.y0, t=problem.t)

    def solution(self) -> Solution:
        problem, layout = self.problem, self.problem.layout
        events = self.watch.records()
        kept = self.save != "times"
        return Solution(
            ts=problem.t,
            ys=layout.unpack(torch.stack(self.outputs)),
            status=self.status,
            nfe=problem.field.evaluations + self.evaluations,
            accepted=len(self.errors),
            rejected=self.rejected,
            steps=Steps(
                torch.tensor(self.times, dtype=torch.float64),
                torch.tensor(self.errors, dtype=torch.float64),
                _numbers(self.stiff),
                layout.unpack(torch.stack(self.states)) if kept else None,
            ),
            events=events,
            dense=self._evaluate if self.save == "dense" else None,
        )

    def _evaluate(self, t: Tensor) -> Any:
        """The solution at times of any shape."""
        direction = self.problem.field.direction
        edges = torch.tensor(self.times, dtype=torch.float64)
        flat = t.reshape(-1).cpu()
        check_inside(flat.detach(), self.times[0], self.end)
        # The first edge at or beyond t ends its step.
        places = torch.searchsorted(edges * direction, flat.detach() * direction) - 1
        times = as_times(flat)
        inside: dict[int, list[int]] = {}
        for i, place in enumerate(places.clamp(min=0).tolist()):
            inside.setdefault(place, []).append(i)
        found: dict[int, Tensor] = {}
        for place, indices in inside.items():
            found.update(zip(indices, self._at(place, [times[i] for i in indices]), strict=True))
        values = [found[i] for i in range(len(times))]
        packed = torch.stack(values) if values else self.problem.y0.new_empty(0, *self.shape)
        return self.problem.layout.unpack(packed.reshape(t.shape + self.shape))

    def _at(self, place: int, times: Sequence[Time]) -> list[Tensor]:
        """The solution at times inside one step."""
        if not self.steps:
            return [self.problem.y0 for _ in times]
        step = self.steps[place]
        if not self.keeps_derivatives:
            return step.at_all(times)
        if isinstance(times[0], Tensor) and not isinstance(step, (Step, GridStep)):
            # Steps of the C++ loop take numbers; those of the reference have the gradient of t.
            assert self.tableau is not None
            step = Step(
                self.problem.field, self.tableau, step.t, step.t1, step.y, step.y1, list(step.k)
            )
        return [step.at(t) for t in times]

    @property
    def shape(self) -> torch.Size:
        return self.problem.y0.shape


def _numbers(values: Sequence[float | Tensor]) -> Tensor:
    """One tensor on the CPU; the host waits once for numbers on a GPU."""
    if values and isinstance(values[0], Tensor):
        return torch.stack([torch.as_tensor(x) for x in values]).to("cpu", torch.float64)
    return torch.tensor(values, dtype=torch.float64)


def check_inside(t: Tensor, first: float, last: float, name: str = "t") -> None:
    """Raises ValueError if a time lies outside the interval that was solved."""
    low, high = min(first, last), max(first, last)
    wrong = ~((t >= low) & (t <= high))
    if bool(wrong.any()):
        raise ValueError(
            f"{name} must lie in [{low:.9g}, {high:.9g}], which was solved, got "
            f"{t[wrong][0].item():.9g}"
        )
