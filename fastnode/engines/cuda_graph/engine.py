"""The whole adaptive solve in one CUDA graph (opt in: ``engine="graph"``).

A step is captured once and repeated on the device, which accepts and rejects steps itself; the host
waits only for the end of the solve. Kernels and decisions are those of the native engine, and so
are the numbers, bit for bit. The vector field must be pure: its Python code runs at the capture
only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastnode import extension
from fastnode.control.request import SolveRequest
from fastnode.control.stiffness import Stiffness
from fastnode.engines.cuda_graph.field import CannotCapture, CannotRun
from fastnode.engines.cuda_graph.plan import Plan, Record, clear, plan_for
from fastnode.engines.cuda_graph.program import Shape
from fastnode.engines.held_values import HeldValues
from fastnode.engines.methods import ADAPTIVE
from fastnode.engines.native import joint as native
from fastnode.engines.reference.step import take_step
from fastnode.errors import cannot_continue, not_finite_at_start
from fastnode.ops.rk_stage import FLOATING
from fastnode.problem.ivp import NO_CALLBACKS, Callbacks, Time, VectorField
from fastnode.tableaus import Tableau
from fastnode.torch_support.recompute import ReplayableField

LIMITS = (
    "it takes methods with an error estimate, states of real floating tensors on one CUDA device "
    "and numbers as tolerances, and knows no per_sample, events, on_step, save='dense', norms or "
    "stops of the caller's, callbacks, times that need gradients or torch.func transforms; "
    "gradients are those of adjoint='checkpoint', Revolve or 'continuous'"
)
ADJOINTS = ("checkpoint", "revolve", "continuous", "none", "backprop")


def refuse(what: str) -> CannotRun:
    return CannotRun(f"engine 'graph' cannot run this solve: {what}; {LIMITS}")


def check(request: SolveRequest, per_sample: bool) -> None:
    """Raises ValueError for what a caller asked in vain of this engine."""
    asked = {
        "the method has no error estimate": request.method not in ADAPTIVE,
        "per_sample=True": per_sample,
        "save='dense'": request.save == "dense",
        "events": bool(request.events),
        "on_step": request.on_step is not None,
        f"adjoint={request.adjoint!r}": request.adjoint not in ADJOINTS,
    }
    for what in (what for what, wanted in asked.items() if wanted):
        raise refuse(what)


@dataclass(frozen=True, eq=False)
class RecordedStep:
    """A step of a finished solve, with the outputs inside it."""

    t: float
    t1: float
    y: Tensor
    y1: Tensor
    error: float
    stiffness: float
    outputs: dict[float, Tensor]
    #: Stage derivatives are not kept.
    k: tuple[Tensor, ...] = ()

    def at(self, t: float) -> Tensor:
        return self.y1 if t == self.t1 else self.outputs[t]


@dataclass(eq=False)
class GraphStepper:
    """A solve with the interface of the native engine's stepper; nothing runs before ``integrate``
    or the first ``advance``."""

    field: VectorField
    func: Any
    shape: Shape
    y: Tensor
    times: list[float]
    first_step: float | None
    ends: list[float] = dataclasses.field(default_factory=list)
    errors: list[float] = dataclasses.field(default_factory=list)
    stiffness: list[float] = dataclasses.field(default_factory=list)
    rejected: int = 0
    evaluations: int = 0
    _outputs: Tensor | None = None
    _states: list[Tensor] = dataclasses.field(default_factory=list)
    _failure: Any = None
    #: Steps and outputs returned so far.
    _taken: int = 0
    _given: int = 1

    def record(self, weights: Any) -> None:
        """Stiffness is recorded too, besides ends and errors of steps."""
        self.shape = replace(self.shape, stiffness=weights)

    def integrate(self, times: Sequence[float], all_together: bool = False) -> Tensor:
        """The solution [T, ...] at ``times``, which must be those the stepper was made for."""
        assert list(times) == self.times
        self._run(replace(self.shape, together=all_together))
        if self._failure is not None:
            self._failure()
        return self.outputs()

    def outputs(self) -> Tensor:
        """The outputs so far."""
        return self.y.unsqueeze(0) if self._outputs is None else self._outputs

    def advance(self) -> RecordedStep:
        """The next step; the first call runs the whole solve."""
        if self._outputs is None:
            weights = Stiffness(self.shape.tableau).weights
            shape = replace(self.shape, together=True, keeps_starts=True, stiffness=weights)
            self._run(shape)
        n = self._taken
        if n == len(self.ends):
            self._failure()
        self._taken += 1
        outputs, direction = self.outputs(), self.field.direction
        t, t1 = self.ends[n - 1] if n else self.times[0], self.ends[n]
        inside: dict[float, Tensor] = {}
        while self._given < len(outputs) and (self.times[self._given] - t1) * direction < 0:
            inside[self.times[self._given]] = outputs[self._given]
            self._given += 1
        stiffness = self.stiffness[n] if self.stiffness else math.nan
        y, y1 = self._states[n : n + 2]
        return RecordedStep(t, t1, y, y1, self.errors[n], stiffness, inside)

    def _run(self, shape: Shape) -> None:
        # The memory of a plan is written by later solves too, which may not be in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            plan = plan_for(self.func, self.field, self.y, self.times[0], shape)
            with plan.lock:
                self._finish(plan, shape)

    def _finish(self, plan: Plan, shape: Shape) -> None:
        self._outputs = plan.run(self.field, self.y, self.times, self.first_step, self._take)
        state, step = plan.state, plan.program.step
        if shape.keeps_starts:
            self._states.append(step.y.clone())
        first, each = plan.program.evaluations
        self.rejected = state["rejected"]
        self.evaluations = first + each * (state["accepted"] + self.rejected)
        if state["next"] < len(self.times):
            self._failure = self._why(plan, dict(state))

    def _take(self, record: Record) -> None:
        self.ends += record.ends
        self.errors += record.errors
        self.stiffness += record.stiffness
        self._states += record.starts.unbind()

    def _why(self, plan: Plan, state: dict[str, Any]) -> Any:
        """A function that raises the reason why the solve cannot continue."""
        y, f = plan.program.step.y.clone(), plan.program.step.f.clone()
        t, h, ratio = state["t"], state["h"] * state["direction"], state["ratio"]
        if math.isnan(h):
            return lambda: not_finite_at_start(t, y, f)
        derivatives: list[Tensor] = []
        if not math.isfinite(ratio):
            # The last attempt is recomputed: the CUDA graph may have overwritten its stages.
            t1 = t + state["taken"] * state["direction"]
            bare = VectorField(
                self.func, self.field.layout, y, self.field.direction, self.field.args
            )
            derivatives = take_step(bare, self.shape.tableau, t, t1, y, f, perturb=True).k
        most = self.shape.max_num_steps
        return lambda: cannot_continue(t, h, state["attempts"], most, ratio, derivatives)


def make_stepper(
    field: VectorField,
    tableau: Tableau,
    t: Time,
    y: Tensor,
    *,
    end: Time,
    controller: Any,
    norm: Any,
    first_step: float | None = None,
    max_num_steps: int = 2**31 - 1,
    stops: Sequence[Any] = (),
    callbacks: Callbacks = NO_CALLBACKS,
    outputs: Sequence[Time] = (),
) -> GraphStepper:
    """As engines.reference.adaptive.AdaptiveStepper; ``outputs`` are the times from t to end.

    Raises:
        ValueError: this engine cannot run the solve.
    """
    func = field.func.func if isinstance(field.func, ReplayableField) else field.func
    times = [float(time) for time in (outputs or (t, end)) if not isinstance(time, Tensor)]
    asked = {
        f"the extension is {extension.REASON}": not extension.AVAILABLE,
        f"the state is {y.dtype}": y.dtype not in FLOATING,
        "a norm of the caller's, or tolerances that are tensors": not norm.plain,
        "stops": bool(stops),
        "callbacks": callbacks != NO_CALLBACKS,
        "times that need gradients": len(times) < 2,
        "a transform, a subclass of Tensor or torch.compile": native.refusal(y, times) is not None,
        "the state has no elements": y.numel() == 0,
    }
    for what in (what for what, wanted in asked.items() if wanted):
        raise refuse(what)
    if torch.is_grad_enabled():
        known = {"y0": y, **HeldValues.of(func).tensors}
        known |= {f"args[{i}]": x for i, x in enumerate(field.args) if isinstance(x, Tensor)}
        for path in (path for path, x in known.items() if x.requires_grad):
            raise refuse(f"{path} needs a gradient and adjoint='backprop' has none here")
    shape = Shape(
        tableau,
        native.control_numbers(controller),
        tuple(norm.rtol),
        tuple(norm.atol),
        tuple(norm.sizes),
        len(times),
        max_num_steps,
        together=False,
        keeps_starts=False,
        stiffness=None,
        chooses_first=first_step is None,
    )
    return GraphStepper(field, func, shape, y.detach(), times, first_step)


__all__ = ["CannotCapture", "CannotRun", "GraphStepper", "check", "clear", "make_stepper"]
