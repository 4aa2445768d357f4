"""A residual block that takes steps of an ODE."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastnode.adjoints.discrete.revolve import Revolve
from fastnode.adjoints.select import find_adjoint
from fastnode.api.solve import solve
from fastnode.engines.methods import FIXED
from fastnode.nn.compiled import CompiledInside
from fastnode.nn.fields import check_positive
from fastnode.nn.node import check_module, full_precision
from fastnode.tableaus import METHODS


class WithoutTime(nn.Module):
    """A field of the state alone, called with the time."""

    field: nn.Module

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.field(z)


class ODEBlock(nn.Module):
    """A few equal steps along dz/dt = field(t, z) as one block of a residual network.

    One step of Euler is a residual block, z + field(z); more steps or a method of higher order keep
    its parameters and follow the ODE closer. By default the block keeps the states at its steps and
    recomputes the steps in the backward pass: the gradient is that of backprop through them, in the
    memory of one step's autograd graph, also where the ODE cannot be solved backwards (ReLU,
    convolutions; docs/gradients.md). BatchNorm's statistics and random numbers are those of a
    single pass.

    Args:
        field: a module called ``field(t, z)``, t a tensor without dimensions; ``field(z)`` if
            ``autonomous``. It returns the shape of z.
        steps: number of steps.
        method: an explicit method of fixed steps: euler, midpoint or heun2 (RK2), heun3, rk4 (the
            3/8 rule).
        adjoint: how gradients are made, as in :func:`fastnode.solve`: "checkpoint", "backprop",
            "reversible", "continuous", "none" or a :class:`fastnode.Revolve`. ``Revolve(1)`` keeps
            only the block's input.
        t0, t1: time at the first and the last step.
        autonomous: whether the field does not take the time, as an ``nn.Sequential`` does not.
        compile: whether solves run native code of the field, as in :class:`NeuralODE`.

    Shape:
        ``block(z)`` takes a tensor of any shape that the field takes and returns that shape.

    Raises:
        TypeError: field is no module, steps no integer.
        ValueError: steps below 1, t0 and t1 equal, another method, an unknown adjoint; in a call,
            what :func:`fastnode.solve` raises.
        NotCompilable: in a call with ``compile``, there can be no code for the field.

    Source: A. Gholami, K. Keutzer, G. Biros, ANODE, IJCAI 2019, arXiv 1902.10298.
    """

    #: The field of time and state that is compiled; it is no part of the module.
    _timeless: WithoutTime | None

    def __init__(
        self,
        field: nn.Module,
        steps: int = 1,
        method: str = "euler",
        adjoint: str | Revolve = "checkpoint",
        t0: float = 0.0,
        t1: float = 1.0,
        autonomous: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self._compiled = CompiledInside(compile)
        check_module(field=field)
        check_positive(steps=steps)
        stepped = [name for name in METHODS if name in FIXED]
        if method not in stepped:
            raise ValueError(f"method must be one of {', '.join(stepped)}, got {method!r}")
        find_adjoint(adjoint, method)
        if t0 == t1:
            raise ValueError(f"t0 and t1 must differ, got {t0} for both")
        self.field, self.steps, self.method, self.adjoint = field, steps, method, adjoint
        self.t0, self.t1, self.autonomous = t0, t1, autonomous
        # As an attribute it would be a part of the module.
        self.__dict__["_timeless"] = None

    def forward(self, z: Tensor) -> Tensor:
        z = full_precision(z)
        solution = solve(
            self._func(z),
            z,
            torch.tensor([self.t0, self.t1], dtype=torch.float64),
            method=self.method,
            steps=self.steps,
            adjoint=self.adjoint,
        )
        return solution.ys[-1]

    def _func(self, z: Tensor) -> Any:
        if not self.autonomous:
            return self._compiled(self.field, z)
        if not self._compiled.wanted:
            # A method and not a closure: solve finds the parameters and buffers through it.
            return self._without_time
        known = self._timeless
        if known is None or known.field is not self.field:
            known = self.__dict__["_timeless"] = WithoutTime(self.field)
        return self._compiled(known, z)

    def _without_time(self, t: Tensor, z: Tensor) -> Tensor:
        return self.field(z)

    def extra_repr(self) -> str:
        return (
            f"steps={self.steps}, method={self.method}, adjoint={self.adjoint}, "
            f"t=[{self.t0}, {self.t1}]"
        )
