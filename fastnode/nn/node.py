"""Modules that predict by solving an ODE, trainable through the solver."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastnode.adjoints.discrete.revolve import Revolve
from fastnode.adjoints.select import find_adjoint
from fastnode.engines.methods import ADAPTIVE, FIXED, NAMES
from fastnode.nn.compiled import CompiledInside
from fastnode.nn.fields import check_positive
from fastnode.nn.solving import (
    as_times,
    check_options,
    check_regularizer,
    solve_end,
    solve_regularized,
    solve_states,
)
from fastnode.regularize import Regularizer
from fastnode.torch_support.compile import is_exporting

#: Bound on the steps of an adaptive solve, as in the evaluation of arXiv 2410.22918.
MAX_STEPS = 1000


def check_module(**modules: nn.Module) -> None:
    """Raises TypeError unless every argument is a module."""
    for name, module in modules.items():
        if not isinstance(module, nn.Module):
            raise TypeError(f"{name} must be a torch.nn.Module, got {type(module).__name__}")


def _check_method(method: str) -> None:
    if method not in NAMES:
        raise ValueError(f"method must be one of {', '.join(NAMES)}, got {method!r}")


def _times(t0: float, t1: float, steps: int) -> list[float]:
    """Where equal steps begin and end, rounded as torch.linspace rounds: numbers, which a compiled
    or exported graph holds as they are."""
    h, half = (t1 - t0) / steps, (steps + 1) // 2
    return [t0 + h * i if i < half else t1 - h * (steps - i) for i in range(steps + 1)]


def full_precision(z: Tensor) -> Tensor:
    """An embedding in the precision it is worked with: under autocast at least float32.

    Layers under autocast return bfloat16 or float16, too coarse for a state that is accumulated
    over many steps and for a difference of two embeddings. The field still runs in autocast's type.
    """
    if z.dtype in (torch.bfloat16, torch.float16) and torch.is_autocast_enabled(z.device.type):
        return z.float()
    return z


class _Regularized(nn.Module):
    """A module that keeps the NFE and the penalty of its last call of forward."""

    field: nn.Module

    def __init__(self, regularizer: Regularizer | None, compile: bool) -> None:
        super().__init__()
        self.regularizer = regularizer
        self._compiled = CompiledInside(compile)
        self.regularization = torch.zeros(())
        self.nfe = 0

    def _solve_regularized(
        self, z0: Tensor, ts: Tensor, last: bool = False, **options: Any
    ) -> Tensor:
        """The trajectory, or the last of its states."""
        found = solve_regularized(self, self.regularizer, z0, ts, last, **options)
        return self._note(*found)

    def _odeint(self, z0: Tensor, ts: Tensor, **options: Any) -> Tensor:
        return self._note(*solve_states(self._solved(z0), z0, ts, **options))

    def _end(self, z0: Tensor, times: list[float], **options: Any) -> Tensor:
        """The state at the last time."""
        return self._note(*solve_end(self._solved(z0), z0, times, **options))

    def _solved(self, z0: Tensor) -> nn.Module:
        """The field, or with ``compile`` its compiled form."""
        return self._compiled(self.field, z0)

    def _note(self, solution: Tensor, penalty: Tensor, nfe: int) -> Tensor:
        # An exported graph has no place for them.
        if not is_exporting():
            self.regularization, self.nfe = penalty, nfe
        return solution

    def __getstate__(self) -> dict[str, Any]:
        # A copy has the value of the penalty without the autograd graph of the call that made it.
        return {**self.__dict__, "regularization": self.regularization.detach()}


class NeuralODE(_Regularized):
    """A layer whose output is the solution of dz/dt = field(t, z) at t1, with z(t0) its input.

    It is trained through the solver's steps, or as ``adjoint`` says. With an encoder before and a
    decoder behind it is a NODE classifier: ``nn.Sequential(encoder, NeuralODE(field), decoder)``.

    Args:
        field: the vector field, called ``field(t, z)`` with t a tensor without dimensions.
        method: any method of :func:`fastnode.odeint`.
        rtol, atol: tolerances of an adaptive method.
        t0, t1: start and end time; t1 may lie before t0.
        options: the solver's options, as for :func:`fastnode.odeint`; with a regulariser
            first_step, min_step, max_step, max_num_steps and step_size.
        regularizer: one of :mod:`fastnode.regularize`, at work in training mode.
        adjoint: how gradients are made, as in :func:`fastnode.solve`; with any but "backprop"
            options are those of a regulariser.
        compile: whether solves run native code of the field, made at the first one
            (:func:`fastnode.compile_field`); parameters and ``state_dict`` stay as they are.

    Attributes:
        nfe: evaluations of the field by the last solve of forward (an int, not part of the state).
        regularization: the weighted penalty of the last call of forward, to be added to the loss:
            a scalar with its gradient, 0 in evaluation mode and without a regulariser.

    Raises:
        TypeError: field is not a module, or regularizer none.
        ValueError: unknown method, t0 and t1 equal, a method or option that the regulariser cannot
            work with; in a call, what :func:`fastnode.odeint` and the regulariser raise.
        NotCompilable: in a call with ``compile``, there can be no code for the field.

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
        regularizer: Regularizer | None = None,
        adjoint: str | Revolve = "backprop",
        compile: bool = False,
    ) -> None:
        super().__init__(regularizer, compile)
        check_module(field=field)
        _check_method(method)
        check_regularizer(regularizer, method, options)
        find_adjoint(adjoint, method)
        if adjoint != "backprop":
            check_options(f"adjoint {adjoint!r}", options)
        self.adjoint = adjoint
        if t0 == t1:
            raise ValueError(f"t0 and t1 must differ, got {t0} for both")
        self.field = field
        self.method, self.rtol, self.atol = method, rtol, atol
        self.t0, self.t1, self.options = t0, t1, options

    def forward(self, z0: Tensor, ts: Tensor | None = None) -> Tensor:
        """The solution at t1, of the shape of z0; with ``ts`` the trajectory [len(ts), *z0.shape].

        ``ts`` replaces t0 and t1: a tensor of increasing or decreasing times that starts with the
        time of z0.
        """
        z0 = full_precision(z0)
        solver = {"rtol": self.rtol, "atol": self.atol, "method": self.method}
        if not self._plain():
            options, last = dict(self.options or {}), ts is None
            if ts is None:
                ts = as_times([self.t0, self.t1])
                if self.method in FIXED and "step_size" not in options:
                    options["steps"] = 1
            return self._solve_regularized(z0, ts, last, adjoint=self.adjoint, **solver, **options)
        if ts is not None:
            return self._odeint(z0, ts, options=self.options, **solver)
        return self._end(z0, [self.t0, self.t1], options=self.options, **solver)

    def _plain(self) -> bool:
        """Whether ``odeint`` solves, without a regulariser or an adjoint of its own."""
        if is_exporting() and not self.training:
            # What is exported for predictions has no gradients.
            return True
        return self.regularizer is None and self.adjoint == "backprop"

    def extra_repr(self) -> str:
        return f"method={self.method}, rtol={self.rtol}, atol={self.atol}, t=[{self.t0}, {self.t1}]"


class EncodedODE(_Regularized):
    """decoder(z(1)) where dz/dt = field(t, z) and z(0) = encoder(x).

    The model that a NODE trained through the solver and :class:`SimulationFreeNODE` share; each
    call may choose another solver.

    Args:
        encoder, field, decoder: modules; the field is called ``field(t, z)``.
        method, steps, rtol, atol: defaults of forward's arguments: any method of
            :func:`fastnode.odeint`, ``steps`` equal steps for a method of fixed steps, the
            tolerances for an adaptive one.
        regularizer: one of :mod:`fastnode.regularize`, at work in training mode.
        times: T increasing times in place of 0 and 1, the first being that of encoder(x); the
            decoder is then given the states at all of them, [B, T, ...], and a method of fixed
            steps takes one from each to the next.
        compile: whether solves run native code of the field, as in :class:`NeuralODE`.

    Attributes:
        nfe: evaluations of the field by the last solve of forward (an int, not part of the state).
        regularization: the weighted penalty of the last call of forward, to be added to the loss:
            a scalar with its gradient, 0 in evaluation mode and without a regulariser.

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
        regularizer: Regularizer | None = None,
        times: Tensor | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(regularizer, compile)
        check_module(encoder=encoder, field=field, decoder=decoder)
        check_positive(steps=steps)
        _check_method(method)
        check_regularizer(regularizer, method)
        self.encoder, self.field, self.decoder = encoder, field, decoder
        self.method, self.steps, self.rtol, self.atol = method, steps, rtol, atol
        self.times = times

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
        z0, fixed = full_precision(self.encoder(x)), method in FIXED
        solver = {
            "rtol": self.rtol if rtol is None else rtol,
            "atol": self.atol if atol is None else atol,
            "method": method,
        }
        options = {"max_num_steps": MAX_STEPS} if method in ADAPTIVE else {}
        if self.regularizer is not None and self.training:
            if fixed and self.times is None:
                options["steps"] = steps
            last = self.times is None
            ts = as_times([0.0, 1.0]) if self.times is None else self.times
            solution = self._solve_regularized(z0, ts, last, **solver, **options)
        elif self.times is None:
            times = _times(0.0, 1.0, steps if fixed else 1)
            solution = self._end(z0, times, options=options, **solver)
        else:
            solution = self._odeint(z0, self.times, options=options, **solver)
        return self.decoder(solution if self.times is None else solution.transpose(0, 1))

    def extra_repr(self) -> str:
        return f"method={self.method}, steps={self.steps}, rtol={self.rtol}, atol={self.atol}"
