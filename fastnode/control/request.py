"""What is asked of a solve beside its problem: one frozen object from the face to the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from fastnode.control.controllers import Controller
from fastnode.control.options import AdaptiveOptions, FixedOptions, ScipyOptions, Stop
from fastnode.problem.batch import Tolerances
from fastnode.problem.ivp import Problem, Time, as_times
from fastnode.tableaus import METHODS, Tableau


def no_stops(start: float, end: float, direction: float) -> Sequence[Stop]:
    return ()


@dataclass(frozen=True, eq=False)
class SolveRequest:
    """Made and checked once, by a face.

    Attributes:
        method: its name.
        rtol, atol: numbers, tensors that broadcast to the state, or one for each part of a tuple
            state; with per-sample stepping numbers or [B].
        engine: the engine that was named, or "auto".
        adjoint, slots, adjoint_params: how gradients are made; the states that a Revolve keeps; the
            tensors that the field holds, if they were named.
        controller, first_step, max_num_steps: of methods that choose their steps.
        all_together: whether max_num_steps is for the whole solve, not from output to output.
        norm: the error norm, if it is the caller's.
        stops: of (start, end, direction): times at which steps must end.
        fixed: options of methods of fixed steps; ``steps`` of equal size if given.
        scipy: options of SciPy's solver.
        save: what is kept: the states at the "times", at all "steps", or the "dense" output.
        events: those of ``fastnode.solve``.
        on_step: called with each accepted step.
        throw: whether a solve that cannot go on raises.
        record: whether the result holds what the solve did: its steps, their errors, counts.
    """

    method: str
    rtol: Any = 1e-3
    atol: Any = 1e-6
    engine: str = "auto"
    adjoint: str = "backprop"
    slots: int | None = None
    adjoint_params: tuple[Tensor, ...] | None = None
    # Only of methods that choose their steps: torch.compile can trace no request with a default.
    controller: Controller = cast(Controller, None)
    first_step: Any = None
    max_num_steps: int = 2**31 - 1
    all_together: bool = False
    norm: Callable[[Any], Any] | None = None
    stops: Callable[[float, float, float], Sequence[Stop]] = no_stops
    fixed: FixedOptions | None = None
    steps: int | None = None
    scipy: ScipyOptions | None = None
    save: str = "times"
    events: Sequence[Any] = ()
    on_step: Callable[[Any], Any] | None = None
    throw: bool = True
    record: bool = False
    #: What an engine derives from the request and uses again.
    derived: dict[str, Any] = field(default_factory=dict, init=False)

    @property
    def tableau(self) -> Tableau:
        """Of an explicit Runge-Kutta method."""
        return METHODS[self.method]

    @property
    def adaptive(self) -> bool:
        """Whether the method chooses its steps, by an embedded error estimate."""
        return self.fixed is None and self.scipy is None

    @property
    def tolerances(self) -> Tolerances:
        """With per-sample stepping."""
        return Tolerances(self.rtol, self.atol)

    @property
    def keep_states(self) -> bool:
        return self.save != "times"

    @property
    def keep_derivatives(self) -> bool:
        return self.save == "dense"

    def with_(self, **changes: Any) -> SolveRequest:
        return replace(self, **changes)

    def grid(self, problem: Problem) -> list[Time]:
        """Where fixed steps begin and end; the problem's own times if each step leads from one of
        them to the next."""
        assert self.fixed is not None
        if self.steps is None and self.fixed.steps_between_times:
            return problem.times
        return as_times(self.grid_tensor(problem))

    def grid_tensor(self, problem: Problem) -> Tensor:
        """The same as a tensor on the CPU."""
        assert self.fixed is not None
        if self.steps is not None:
            t = problem.t.double()
            even = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)
            # Both ends exactly: 1 - x and x, not a sum of rounded steps.
            return t[0] * (1 - even) + t[-1] * even
        return self.fixed.grid(problem.func, problem.layout.unpack(problem.y0), problem.t)


def adaptive_request(
    method: str, rtol: Any, atol: Any, options: AdaptiveOptions, **further: Any
) -> SolveRequest:
    """With ``odeint``'s options."""
    return SolveRequest(
        method,
        rtol,
        atol,
        controller=options.controller,
        first_step=options.first_step,
        max_num_steps=options.max_num_steps,
        norm=options.norm,
        stops=options.stops,
        **further,
    )
