"""A solve all of whose samples share their steps, ready to be run in the way its adjoint asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastnode.adjoints.continuous.adjoint import Adjoint
from fastnode.adjoints.discrete.checkpoint import StepChain, checkpointed
from fastnode.adjoints.discrete.reversible import reversibly
from fastnode.adjoints.discrete.step_transpose import Scheme
from fastnode.adjoints.select import DISCRETE, find_params
from fastnode.control.controllers import Controller
from fastnode.control.norms import ErrorNorm
from fastnode.control.options import FixedOptions
from fastnode.engines import select
from fastnode.engines.methods import ADAPTIVE, FIXED, fixed_method
from fastnode.engines.reference.fixed import GridStepper
from fastnode.engines.reference.step import StepFunction
from fastnode.ops.dispatch import transformed
from fastnode.problem.ivp import Problem, Time, as_times, to_float
from fastnode.recording.joint import Recording
from fastnode.solution import Solution
from fastnode.tableaus import METHODS
from fastnode.torch_support.grad_mode import recorded


@dataclass(eq=False)
class JointSolve:
    """What ``fastnode.solve`` was asked for, checked but for the times of fixed steps."""

    problem: Problem
    method: str
    rtol: Any
    atol: Any
    controller: Controller
    save: str
    events: Sequence[Any]
    engine: str
    first_step: float | None
    max_num_steps: int
    step_size: float | None
    steps: int | None
    throw: bool
    on_step: Callable[[Any], Any] | None
    #: Where fixed steps begin and end; empty for a method that chooses its steps.
    grid: list[Time] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        if self.method in FIXED:
            self.grid = self._grid(self.problem)
            return
        self._control: dict[str, Any] = {
            "controller": self.controller,
            "norm": ErrorNorm(self.problem.layout, self.problem.y0, self.rtol, self.atol),
            "first_step": self.first_step,
        }

    def run(self, adjoint: str, slots: int | None, adjoint_params: Any) -> Solution:
        """The solution with the gradients of an adjoint (see ``fastnode.adjoints``)."""
        if len(self.problem.times) == 1 or adjoint in ("backprop", "none"):
            return self._backprop(self.problem).solution()
        problem = self.problem
        params = find_params(problem.field.func, adjoint, adjoint_params)
        if adjoint == "reversible":
            return reversibly(
                problem,
                METHODS[self.method],
                params,
                self._record,
                self.grid,
                self.max_num_steps,
                {} if self.grid else self._control,
                self.throw,
            )
        args = problem.field.args
        if transformed() or not recorded((problem.y0, problem.t), args, params):
            return self._backprop(problem).solution()
        if adjoint in DISCRETE:
            return self._checkpoint(slots, params)
        return self._continuous(params)

    def _backprop(self, problem: Problem) -> Recording:
        grid = self.grid
        if problem is not self.problem and grid:
            grid = self._grid(problem)
        recording = self._record(problem)
        if len(problem.times) > 1:
            recording.run(partial(self._stepper, problem, grid), self.throw)
        return recording

    def _checkpoint(self, slots: int | None, params: tuple[Tensor, ...]) -> Solution:
        inside = "cubic" if self.grid else "dense"
        scheme = Scheme(METHODS[self.method], inside, perturb=not self.grid)
        if self.engine == "graph" and scheme.carries:
            raise select.graph_engine().refuse(
                f"method {self.method!r} with adjoint 'checkpoint' or a Revolve"
            )
        return checkpointed(
            self.problem,
            self.grid,
            scheme,
            slots,
            params,
            self._record,
            self._stepper,
            self.throw,
            keeps_graph=self.on_step is None and not self.events and self.engine != "graph",
            kind=_captured_chain() if self.engine == "graph" else StepChain,
        )

    def _continuous(self, params: tuple[Tensor, ...]) -> Solution:
        problem = self.problem
        held = (x for x in problem.field.args if isinstance(x, Tensor) and x.requires_grad)
        size = self._size()
        adjoint = Adjoint(
            problem,
            # The same tensor twice would get its gradient twice.
            tuple({id(x): x for x in (*params, *held)}.values()),
            method=self.method,
            rtol=self.rtol,
            atol=self.atol,
            options=None if size is None else {"step_size": size},
            solve_with_graph=lambda problem: torch.stack(self._backprop(problem).outputs),
        )
        with torch.no_grad():
            recording = self._record(replace(problem, t=problem.t.detach()))
            plain: list[Time] = [to_float(t) for t in self.grid]
            recording.run(partial(self._stepper, recording.problem, plain), self.throw)
            packed = torch.stack(recording.outputs)
        recording.outputs = list(adjoint.attach(packed).unbind())
        recording.problem = problem
        return recording.solution()

    def _record(self, problem: Problem) -> Recording:
        return Recording(problem, METHODS.get(self.method), self.save, self.events, self.on_step)

    def _stepper(self, problem: Problem, grid: list[Time]) -> Any:
        if self.method in FIXED:
            step = self._fixed_method(problem)[1]
            return GridStepper(problem.field, step, problem.y0, grid, self.max_num_steps)
        start, *_, end = problem.times
        return select.make_stepper(
            self.engine,
            problem.field,
            ADAPTIVE[self.method],
            start,
            problem.y0,
            end=end,
            max_num_steps=self.max_num_steps,
            outputs=problem.times,
            **self._control,
        )

    def _size(self) -> float | None:
        """The size of fixed steps, None for those from one time to the next."""
        if self.steps is None:
            return self.step_size
        start, *_, end = self.problem.t.tolist()
        return abs(end - start) / self.steps

    def _fixed_method(self, problem: Problem) -> tuple[FixedOptions, StepFunction]:
        options = None if self.step_size is None else {"step_size": self.step_size}
        return fixed_method(self.method, options, problem, self.rtol, self.atol)

    def _grid(self, problem: Problem) -> list[Time]:
        """Where fixed steps begin and end."""
        if self.steps is None:
            options = self._fixed_method(problem)[0]
            return as_times(options.grid(problem.field.func, problem.y0, problem.t))
        if self.step_size is not None:
            raise ValueError("step_size and steps exclude each other, got both")
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps must be an integer of at least 1, got {self.steps!r}")
        t = problem.t.double()
        even = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)
        # Both ends exactly: 1 - x and x, not a sum of rounded steps.
        return as_times(t[0] * (1 - even) + t[-1] * even)


def _captured_chain() -> type[StepChain]:
    from fastnode.adjoints.discrete.cuda_graph import CapturedChain

    return CapturedChain
