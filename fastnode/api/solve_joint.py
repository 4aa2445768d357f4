"""A solve whose samples share their steps, run as its adjoint asks."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from fastnode.adjoints.continuous.adjoint import Adjoint
from fastnode.adjoints.discrete.checkpoint import StepChain, checkpointed
from fastnode.adjoints.discrete.reversible import reversibly
from fastnode.adjoints.discrete.step_transpose import Scheme
from fastnode.adjoints.select import DISCRETE, find_params
from fastnode.control.norms import ErrorNorm
from fastnode.control.request import SolveRequest
from fastnode.engines import select
from fastnode.engines.fused import joint as fused
from fastnode.engines.methods import fixed_steps
from fastnode.engines.reference.fixed import GridStepper
from fastnode.ops.dispatch import transformed
from fastnode.problem.ivp import Problem, Time, to_float
from fastnode.recording.joint import Recording
from fastnode.solution import Solution
from fastnode.tableaus import METHODS
from fastnode.torch_support.grad_mode import recorded


class JointSolve:
    """One joint solve: a problem, and what ``fastnode.solve`` was asked for."""

    def __init__(self, problem: Problem, request: SolveRequest):
        self.problem, self.request = problem, request
        self.norm: ErrorNorm | None = None

    @cached_property
    def grid(self) -> list[Time]:
        """Where fixed steps begin and end; empty for a method that chooses its steps."""
        return [] if self.request.fixed is None else self.request.grid(self.problem)

    def run(self) -> Solution:
        """The solution with the gradients of the request's adjoint (see ``adjoints.select``)."""
        problem, request = self.problem, self.request
        if select.choose(problem, request) == "fused":
            return fused.solve(problem, request)
        return select.preferring_graph(problem, request, self._run)

    def _run(self, request: SolveRequest) -> Solution:
        """The same by an engine that takes step by step."""
        problem = self.problem
        self.request = request
        if request.adaptive:
            # Checks the tolerances before any work is done.
            norm = ErrorNorm(problem.layout, problem.y0, request.rtol, request.atol)
            self.norm = norm.for_steps()
        if len(problem.times) == 1 or request.adjoint in ("backprop", "none"):
            return self._backprop(problem).solution()
        params = find_params(problem.func, request.adjoint, request.adjoint_params)
        if request.adjoint == "reversible":
            return reversibly(problem, request, params, self._record, self.grid)
        if transformed() or not recorded((problem.y0, problem.t), problem.args, params):
            return self._backprop(problem).solution()
        if request.adjoint in DISCRETE:
            return self._checkpoint(params)
        return self._continuous(params)

    def _backprop(self, problem: Problem) -> Recording:
        grid = self.grid
        if problem is not self.problem and grid:
            grid = self.request.grid(problem)
        recording = self._record(problem)
        if len(problem.times) > 1:
            recording.run(partial(self._stepper, problem, grid), self.request.throw)
        return recording

    def _checkpoint(self, params: tuple[Tensor, ...]) -> Solution:
        request, inside = self.request, "cubic" if self.grid else "dense"
        scheme = Scheme(request.tableau, inside, perturb=not self.grid)
        by_graph = request.engine == "graph"
        if by_graph and scheme.carries:
            raise select.graph_engine().refuse(
                f"method {request.method!r} with adjoint 'checkpoint' or a Revolve"
            )
        return checkpointed(
            self.problem,
            self.grid,
            scheme,
            request.slots,
            params,
            self._record,
            self._stepper,
            request.throw,
            keeps_graph=request.on_step is None and not request.events and not by_graph,
            kind=_captured_chain() if by_graph else StepChain,
        )

    def _continuous(self, params: tuple[Tensor, ...]) -> Solution:
        problem, request = self.problem, self.request
        held = (x for x in problem.args if isinstance(x, Tensor) and x.requires_grad)
        size = self._size()
        adjoint = Adjoint(
            problem,
            # The same tensor twice would get its gradient twice.
            tuple({id(x): x for x in (*params, *held)}.values()),
            method=request.method,
            rtol=request.rtol,
            atol=request.atol,
            options=None if size is None else {"step_size": size},
            solve_with_graph=lambda problem: torch.stack(self._backprop(problem).outputs),
        )
        with adjoint.forward():
            recording = self._record(problem.with_(t=problem.t.detach()))
            plain: list[Time] = [to_float(t) for t in self.grid]
            recording.run(partial(self._stepper, recording.problem, plain), request.throw)
            packed = torch.stack(recording.outputs)
        recording.outputs = list(adjoint.attach(packed).unbind())
        recording.problem = problem
        return recording.solution()

    def _record(self, problem: Problem) -> Recording:
        request = self.request
        tableau = METHODS.get(request.method)
        return Recording(problem, tableau, request.save, request.events, request.on_step)

    def _stepper(self, problem: Problem, grid: list[Time]) -> Any:
        request = self.request
        if request.fixed is not None:
            step = fixed_steps(problem, request)
            return GridStepper(problem.field, step, problem.y0, grid, request.max_num_steps)
        return select.make_stepper(problem, request, norm=self.norm)

    def _size(self) -> float | None:
        """The size of fixed steps, None for those from one time to the next."""
        if self.request.steps is None:
            return None if self.request.fixed is None else self.request.fixed.step_size
        start, *_, end = self.problem.t.tolist()
        return abs(end - start) / self.request.steps


def _captured_chain() -> type[StepChain]:
    from fastnode.adjoints.discrete.cuda_graph import CapturedChain

    return CapturedChain
