"""Modules that predict by solving an ODE, trainable through the solver."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastnode.methods import ADAPTIVE, FIXED, NAMES
from fastnode.nn.fields import check_positive
from fastnode.odeint import odeint

#: Bound on the steps of an adaptive solve, as in the evaluation of arXiv 2410.22918.
MAX_STEPS = 1000


def check_module(**modules: nn.Module) -> None:
    """Raises TypeError unless every argument is a module."""
    for name, module in modules.items():
        if not isinstance(module, nn.Module):
            raise TypeError(f"{name} must be a torch.nn.Module, got {type(module).__name__}")


class _Counted:
    """A vector field that counts its evaluations."""

    def __init__(self, field: nn.Module) -> None:
        self.field = field
        self.nfe = 0

    def __call__(self, t: Tensor, z: Tensor) -> Tensor:
        self.nfe += 1
        return self.field(t, z)


def _check_method(method: str) -> None:
    if method not in NAMES:
        raise ValueError(f"method must be one of {', '.join(NAMES)}, got {method!r}")


def _grid(t0: float, t1: float, steps: int) -> Tensor:
    return torch.linspace(t0, t1, steps + 1, dtype=torch.float64)


def full_precision(z: Tensor) -> Tensor:
    """An embedding in the precision it is worked with: under autocast at least float32.

    Layers under autocast return bfloat16 or float16, too coarse for a state that is accumulated
    over many steps and for a difference of two embeddings. The field still runs in autocast's type.
    """
    if z.dtype in (torch.bfloat16, torch.float16) and torch.is_autocast_enabled(z.device.type):
        return z.float()
    return z


class NeuralODE(nn.Module):
    """A layer whose output is the solution of dz/dt = field(t, z) at t1, with z(t0) its input.

    It is trained by backpropagation through the solver's steps. With an encoder before and a
    decoder behind it is a NODE classifier: ``nn.Sequential(encoder, NeuralODE(field), decoder)``.

    Args:
        field: the vector field, called ``field(t, z)`` with t a tensor without dimensions.
        method: any method of :func:`fastnode.odeint`.
        rtol, atol: tolerances of an adaptive method.
        t0, t1: start and end time; t1 may lie before t0.
        options: the solver's options, as for :func:`fastnode.odeint`.

    Attributes:
        nfe: evaluations of the field in the last call of forward (an int, not part of the state).

    Raises:
        TypeError: field is not a module.
        ValueError: unknown method, t0 and t1 equal; in a call, what :func:`fastnode.odeint` raises.

    Source: Chen et al., NeurIPS 2018, arXiv 1806.07366.
    """

    def __init__(
        self,
        field: nn.Module,
        method: str = "dopri5",
        rtol: float = 1e-3,
        atol: float = 1e-3,
        t0: float = 0.0,
        t1: float = 1.0,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_module(field=field)
        _check_method(method)
        if t0 == t1:
            raise ValueError(f"t0 and t1 must differ, got {t0} for both")
        self.field = field
        self.method, self.rtol, self.atol = method, rtol, atol
        self.t0, self.t1, self.options = t0, t1, options
        self.nfe = 0

    def forward(self, z0: Tensor, ts: Tensor | None = None) -> Tensor:
        """The solution at t1, of the shape of z0; with ``ts`` the trajectory [len(ts), *z0.shape].

        ``ts`` replaces t0 and t1: a tensor of increasing or decreasing times that starts with the
        time of z0.
        """
        counted = _Counted(self.field)
        solution = odeint(
            counted,
            full_precision(z0),
            _grid(self.t0, self.t1, 1) if ts is None else ts,
            rtol=self.rtol,
            atol=self.atol,
            method=self.method,
            options=self.options,
        )
        self.nfe = counted.nfe
        return solution[-1] if ts is None else solution

    def extra_repr(self) -> str:
        return f"method={self.method}, rtol={self.rtol}, atol={self.atol}, t=[{self.t0}, {self.t1}]"


class EncodedODE(nn.Module):
    """decoder(z(1)) where dz/dt = field(t, z) and z(0) = encoder(x).

    The model that a NODE trained through the solver and :class:`SimulationFreeNODE` share; the way
    it is solved may change from call to call.

    Args:
        encoder, field, decoder: modules; the field is called ``field(t, z)``.
        method, steps, rtol, atol: how forward solves unless told otherwise: any method of
            :func:`fastnode.odeint`, ``steps`` equal steps for a method of fixed steps, the
            tolerances for an adaptive one.

    Attributes:
        nfe: evaluations of the field in the last call of forward (an int, not part of the state).

    Raises:
        TypeError: a module is none.
        ValueError: unknown method, ``steps`` below 1; in a call, what :func:`fastnode.odeint`
            raises.
    """

    def __init__(
        self,
        encoder: nn.Module,
        field: nn.Module,
        decoder: nn.Module,
        method: str = "dopri5",
        steps: int = 1,
        rtol: float = 1e-3,
        atol: float = 1e-3,
    ) -> None:
        super().__init__()
        check_module(encoder=encoder, field=field, decoder=decoder)
        check_positive(steps=steps)
        _check_method(method)
        self.encoder, self.field, self.decoder = encoder, field, decoder
        self.method, self.steps, self.rtol, self.atol = method, steps, rtol, atol
        self.nfe = 0

    def forward(
        self,
        x: Tensor,
        method: str | None = None,
        steps: int | None = None,
        rtol: float | None = None,
        atol: float | None = None,
    ) -> Tensor:
        """The decoder's output; arguments that are None take the values of construction."""
        method = self.method if method is None else method
        steps = self.steps if steps is None else steps
        check_positive(steps=steps)
        _check_method(method)
        fixed = method in FIXED
        counted = _Counted(self.field)
        solution = odeint(
            counted,
            full_precision(self.encoder(x)),
            _grid(0.0, 1.0, steps if fixed else 1),
            rtol=self.rtol if rtol is None else rtol,
            atol=self.atol if atol is None else atol,
            method=method,
            options={"max_num_steps": MAX_STEPS} if method in ADAPTIVE else None,
        )
        self.nfe = counted.nfe
        return self.decoder(solution[-1])

    def extra_repr(self) -> str:
        return f"method={self.method}, steps={self.steps}, rtol={self.rtol}, atol={self.atol}"
