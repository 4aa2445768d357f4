"""How errors of the continuous adjoint are measured: state, adjoint state, parameter gradients."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastnode.adjoints.continuous.quadrature import Quadrature
from fastnode.control.norms import ErrorNorm, check_tolerance, norm_value
from fastnode.ops.rk_error import root_mean_square
from fastnode.problem.ivp import Layout, Problem

Norm = Callable[[Any], Any]


class AdjointNorm:
    """An ``ErrorNorm`` over (y, a) that also measures the parameter gradients.

    ``plain`` if kernels can measure y and a by themselves. The first step is chosen by y and a
    alone; a norm of the caller's then gets zeros for the rest.

    Attributes:
        layout: (*y, *a), tensor by tensor.
        rtol, atol: of each part of the layout.
        tolerances: both of these, followed by those of each of params.
        uses_params: whether errors of parameter gradients count.
    """

    def __init__(
        self,
        problem: Problem,
        params: Sequence[Tensor],
        rtol: Any,
        atol: Any,
        norm: Norm | str | None,
        state_norm: Norm | None,
    ):
        shapes = problem.layout.shapes or (problem.y0.shape,)
        self.layout = Layout((*shapes, *shapes))
        self.params = params
        self.uses_params = norm != "seminorm" and bool(params)
        self._custom = norm if callable(norm) else None
        self._clock = problem.y0.new_zeros((), dtype=problem.field.time_dtype)
        self._quadrature: Quadrature | None = None
        self._of_state, self._state_norm = problem.layout, state_norm
        count, lone = len(shapes), problem.layout.shapes is None

        def by_state(parts: tuple[Tensor, ...]) -> float:
            assert state_norm is not None
            halves = parts[:count], parts[count:]
            return max(norm_value(state_norm, half[0] if lone else half) for half in halves)

        joint = by_state if state_norm is not None else None
        (rtol, of_params), (atol, also) = (self._split(each, problem) for each in (rtol, atol))
        self._state = ErrorNorm(
            self.layout,
            problem.y0.detach().reshape(-1),
            rtol,
            atol,
            joint if self._custom is None else self._measured_by_custom(),
            "adjoint_",
        )
        self._tolerances = [
            [
                check_tolerance(f"adjoint_{name} of adjoint_params[{i}]", each, p.shape, p)
                for i, (each, p) in enumerate(zip(given, params, strict=True))
            ]
            for name, given in (("rtol", of_params), ("atol", also))
        ]
        self.rtol, self.atol = self._state.rtol, self._state.atol
        self.tolerances = [
            [*state, *own]
            for state, own in zip((self.rtol, self.atol), self._tolerances, strict=True)
        ]
        self.plain = self._state.plain

    @property
    def beside(self) -> Callable[[], float] | None:
        """The norm of the parameter gradients where kernels measure y and a; None if unused."""
        return self._of_params if self.uses_params else None

    def watch(self, quadrature: Quadrature | None) -> None:
        """Steps are measured with this quadrature from now on."""
        self._quadrature = quadrature

    def __call__(
        self, y0: Tensor, y1: Tensor, k: Sequence[Tensor], weights: Sequence[float]
    ) -> float:
        state = self._state(y0, y1, k, weights)
        if self._custom is not None or not self.uses_params:
            return state
        params = self._of_params()
        # Not max, which would lose a NaN.
        return state if params <= state else params

    def _of_params(self) -> float:
        """The norm of the parameter gradients' errors in the step that is tried."""
        if self._quadrature is None or not self._quadrature.measurable:
            return 0.0
        return self._quadrature.error_norm(self._tolerances[0], self._tolerances[1])

    def of_packed(self, parts: tuple[Tensor, ...]) -> Any:
        """The norm of scaled errors (t, y, a, *params), y and a packed."""
        t, *packed = parts[:3]
        halves = [self._of_state.unpack(x) for x in packed]
        tensors = [half if isinstance(half, tuple) else (half,) for half in halves]
        params = parts[3:]
        if self._custom is not None:
            return self._custom((t, *tensors[0], *tensors[1], *params))
        if self._state_norm is not None:
            values = [torch.as_tensor(self._state_norm(half)) for half in halves]
        else:
            values = [root_mean_square(x, False) for half in tensors for x in half]
        if self.uses_params:
            values += [root_mean_square(x, False) for x in params]
        return torch.stack([t.abs().double(), *(x.to(t.device).double() for x in values)]).max()

    def size(self, x: Tensor, y: Tensor) -> float:
        """The norm of x relative to the tolerances at y."""
        return self(y, y, [x], [1.0])

    def _measured_by_custom(self) -> Norm:
        # No circle: this object holds what calls the function.
        this = weakref.ref(self)

        def measure(parts: tuple[Tensor, ...]) -> Any:
            norm = this()
            assert norm is not None
            return norm._measure(parts)

        return measure

    def _measure(self, parts: tuple[Tensor, ...]) -> Any:
        assert self._custom is not None
        if self._quadrature is not None and self._quadrature.measurable:
            errors = self._quadrature.scaled_errors(self._tolerances[0], self._tolerances[1])
        else:
            errors = [torch.zeros_like(param) for param in self.params]
        return self._custom((self._clock, *parts, *errors))

    def _split(self, tolerance: Any, problem: Problem) -> tuple[Any, list[Any]]:
        """The tolerance for (*y, *a), and one for each of params."""
        shapes, count = problem.layout.shapes, len(self.params)
        if isinstance(tolerance, Tensor):
            several = tolerance.dim() > 0
        else:
            several = isinstance(tolerance, (tuple, list))
        if not several:
            return tolerance, [tolerance] * count
        if isinstance(tolerance, (tuple, list)) and len(tolerance) == 3 + count:
            _, y, a, *params = tolerance
            parts = 1 if shapes is None else len(shapes)
            return [y] * parts + [a] * parts, params
        state = [tolerance] if shapes is None else list(tolerance)
        # No tolerance was given for them: they get the tightest one of the state.
        tightest = min((float(torch.as_tensor(each).min()) for each in state), default=0.0)
        return state * 2, [tightest] * count
