"""Continuous normalising flows: densities by the change of variables along an ODE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastnode.adjoints.discrete.revolve import Revolve
from fastnode.adjoints.select import find_adjoint
from fastnode.api.solve import solve
from fastnode.engines.methods import SOLVED
from fastnode.errors import NotCompilable
from fastnode.nn.compiled import CompiledInside
from fastnode.nn.density_field import DensityField
from fastnode.nn.fields import check_positive
from fastnode.nn.node import check_module, full_precision
from fastnode.nn.solving import CONTROLLER, as_times, check_options, check_regularizer
from fastnode.regularize import RNODE, Regularizer, TayNODE
from fastnode.regularize.base import no_penalty
from fastnode.tableaus import METHODS
from fastnode.torch_support.compile import uncompiled
from fastnode.torch_support.warn import WarnOnce

TRACES = ("exact", "hutchinson")
NOISES = ("rademacher", "gaussian")
#: Adjoints that native code makes itself.
_NATIVE_ADJOINTS = ("backprop", "checkpoint", "revolve", "none")


class CNF(nn.Module):
    """A density: samples of ``base`` at t0 that dz/dt = field(t, z) carries to t1.

    With z the start of the path that ends in x::

        log p(x) = log p_base(z) - int_t0^t1 tr(df/dz) dt

    The integral is one more column of the state, so that one solve from t1 to t0 gives both terms.
    Where ``compile_field`` takes the field, native code solves, trace included.

    Args:
        field: the vector field, called ``field(t, z)`` with t a tensor without dimensions and z
            [B, D]; it must treat samples alone.
        method: any method of :func:`fastnode.solve`.
        rtol, atol: tolerances of an adaptive method, of z and log p together.
        t0, t1: time of the base and time of the data; t1 may lie before t0.
        options: first_step, min_step, max_step, max_num_steps and step_size, as for
            :func:`fastnode.solve`; a method of fixed steps takes one step without step_size.
        regularizer: one of :mod:`fastnode.regularize` but ``TayNODE``, at work in ``forward`` and
            ``log_prob`` in training mode. ``RNODE`` integrates the kinetic energy and the norm of
            df/dz beside log p, with the trace's own products: its Jacobian norm is exact with the
            exact trace, and has the trace's noise otherwise.
        adjoint: how gradients are made, as in :func:`fastnode.solve`.
        trace: "exact", by D vector-Jacobian products at each evaluation, or "hutchinson", an
            unbiased estimate by one, with noise drawn for each sample and solve.
        noise: of the estimate: "rademacher", the smaller variance, or "gaussian".
        base: the density at t0: an object with ``log_prob(z)`` -> [B] and ``sample((n,))`` ->
            [n, D], as ``torch.distributions`` has them, or a module that is trained along;
            standard normal if None.
        dim: D, which ``sample`` needs where base is None and field has no ``dim``.
        compile: "auto" compiles the field and goes on without, with a warning, where that is not
            possible; True raises instead; False never compiles.

    Attributes:
        nfe: evaluations of the field by the last solve (an int, not part of the state).
        regularization: the weighted penalty of the last call of forward or log_prob, to be added
            to the loss: a scalar with its gradient, 0 in evaluation mode.

    Raises:
        TypeError: field is no module, regularizer none, base no density, a tolerance no number.
        ValueError: an unknown name, atol not above 0, t0 and t1 equal, an option or regulariser
            that cannot be used, ``compile=True`` with a method or an adjoint that native code does
            not have.

    Source: Chen et al., NeurIPS 2018, arXiv 1806.07366, section 4; Grathwohl et al., FFJORD, ICLR
    2019, arXiv 1810.01367.
    """

    def __init__(
        self,
        field: nn.Module,
        method: str = "dopri5",
        rtol: float = 1e-5,
        atol: float = 1e-5,
        t0: float = 0.0,
        t1: float = 1.0,
        options: dict[str, Any] | None = None,
        regularizer: Regularizer | None = None,
        adjoint: str | Revolve = "backprop",
        *,
        trace: str = "exact",
        noise: str = "rademacher",
        base: Any = None,
        dim: int | None = None,
        compile: bool | str = "auto",
    ) -> None:
        super().__init__()
        check_module(field=field)
        _check_choice("method", method, SOLVED)
        _check_choice("trace", trace, TRACES)
        _check_choice("noise", noise, NOISES)
        if compile not in (True, False, "auto"):
            raise ValueError(f"compile must be True, False or 'auto', got {compile!r}")
        for name, value in (("rtol", rtol), ("atol", atol)):
            if not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, got {type(value).__name__}")
        if not (rtol >= 0 and atol > 0):
            # The change of log p begins at 0.
            raise ValueError(f"rtol must be at least 0 and atol above it, got {rtol} and {atol}")
        if t0 == t1:
            raise ValueError(f"t0 and t1 must differ, got {t0} for both")
        if not all(hasattr(base, name) for name in ("log_prob", "sample")) and base is not None:
            raise TypeError(f"base must have log_prob and sample, got {type(base).__name__}")
        if dim is not None:
            check_positive(dim=dim)
        check_regularizer(regularizer, method, options)
        if isinstance(regularizer, TayNODE):
            raise ValueError("regularizer must not be a TayNODE, which has no form for densities")
        check_options("CNF", options)
        self._native = method in METHODS and find_adjoint(adjoint, method)[0] in _NATIVE_ADJOINTS
        if compile is True and not self._native:
            raise ValueError(
                f"compile=True needs an explicit Runge-Kutta method and an adjoint among "
                f"{', '.join(_NATIVE_ADJOINTS)}, got {method!r} and {adjoint!r}"
            )
        self.field, self.base, self.regularizer = field, base, regularizer
        self.method, self.rtol, self.atol, self.adjoint = method, rtol, atol, adjoint
        self.t0, self.t1, self.options = t0, t1, options
        self.trace, self.noise, self.dim, self.compile_mode = trace, noise, dim, compile
        self.regularization, self.nfe = torch.zeros(()), 0
        #: Not submodules: names in the state_dict are those of the field, compiled or not.
        self._densities: dict[tuple[bool, bool], DensityField] = {}
        self._compiled: dict[Any, CompiledInside] = {}
        self._warn = WarnOnce()

    def log_prob(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        trace: str | None = None,
    ) -> Tensor:
        """The log density of samples, [B], in nats; differentiable in x and in the parameters.

        Args:
            x: samples [B, D], float32 or float64.
            generator: source of the estimate's noise, torch's default one if None.
            trace: "exact" or "hutchinson" for this call, as constructed if None.

        Raises:
            ValueError, TypeError: x is of another shape or type, or the base returns one.
            NotCompilable: with ``compile=True``, the field cannot be compiled.
            SolverError: the solve cannot go on, as in :func:`fastnode.solve`.
        """
        z, change = self(x, generator, trace)
        return self._base_log_prob(z) - change

    def forward(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        trace: str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """From data to base: (z [B, D], log p(z) - log p(x) [B]).

        The second is -log|det dz/dx|, so ``log_prob(x) = base.log_prob(z) - it``. Arguments and
        errors are those of ``log_prob``.
        """
        return self._carry("x", x, self.t1, self.t0, generator, trace, self.training)

    def inverse(
        self,
        z: Tensor,
        generator: torch.Generator | None = None,
        trace: str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """From base to data: (x [B, D], log p(x) - log p(z) [B]), differentiable in z and in the
        parameters; ``log_prob(x) = base.log_prob(z) + the second``.

        Arguments and errors are those of ``log_prob``.
        """
        return self._carry("z", z, self.t0, self.t1, generator, trace, False)

    @torch.no_grad()
    def sample(
        self, shape: int | Sequence[int], generator: torch.Generator | None = None
    ) -> Tensor:
        """Samples [n, D] for a number n, or [*shape, D]; without gradients.

        They have the dtype and the device of the field's parameters where the base is None.
        ``inverse`` gives those of chosen starts, with gradients and densities.

        Raises:
            ValueError: D is not known, a size below 1, a generator with a base of its own.
        """
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        for size in sizes:
            check_positive(shape=size)
        count = math.prod(sizes)
        if self.base is None:
            held = next((p for p in self.field.parameters() if p.is_floating_point()), None)
            like = torch.empty(0) if held is None else held
            z = _normal((count, self._find_dim()), like, generator)
        elif generator is not None:
            raise ValueError("generator must be None with a base, which draws by itself")
        else:
            z = self.base.sample((count,))
        z = full_precision(z)
        x = self._end(self.field, z, "samples", self.t0, self.t1, 1.0)[0]
        return x.reshape(*sizes, x.shape[-1])

    @uncompiled
    def _carry(
        self,
        name: str,
        start: Tensor,
        t_start: float,
        t_end: float,
        generator: torch.Generator | None,
        trace: str | None,
        regularized: bool,
    ) -> tuple[Tensor, Tensor]:
        self._check_samples(name, start)
        trace = self.trace if trace is None else trace
        _check_choice("trace", trace, TRACES)
        start = full_precision(start)
        estimated = trace == "hutchinson"
        regularizer = self.regularizer if regularized else None
        density = self._density(estimated, isinstance(regularizer, RNODE))
        noise = self._draw(start, generator) if estimated else None
        state, scale = density.pack(start, noise), density.scale(start.shape[1])
        key = estimated, density.integrals
        end, penalty = self._end(density, state, key, t_start, t_end, scale, regularizer)
        z, change, integrals = density.unpack(end)
        if integrals is not None:
            assert isinstance(regularizer, RNODE)
            kinetic, jacobian = integrals.mean(0) * math.copysign(1.0, t_end - t_start)
            step = regularizer.step
            penalty = regularizer.kinetic(step) * kinetic + regularizer.jacobian(step) * jacobian
        if name == "x":
            self.regularization = penalty
        return z, change

    @uncompiled
    def _end(
        self,
        field: nn.Module,
        state: Tensor,
        key: Any,
        t_start: float,
        t_end: float,
        scale: float,
        regularizer: Regularizer | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The state at t_end and the penalty of a regulariser but RNODE."""
        func, ts = self._code(field, state, key), as_times([t_start, t_end])
        options: dict[str, Any] = {
            "method": self.method,
            "rtol": scale * self.rtol,
            "atol": scale * self.atol,
            "controller": CONTROLLER,
            "adjoint": self.adjoint,
            **(self.options or {}),
        }
        if regularizer is None or isinstance(regularizer, RNODE):
            solution, penalty = solve(func, state, ts, **options), no_penalty(state)
        else:
            solution, penalty = regularizer.solve(func, state, ts, **options)
        self.nfe = int(solution.nfe)
        ys = solution.ys
        assert isinstance(ys, Tensor)
        return ys[-1], penalty

    def _density(self, estimated: bool, integrals: bool) -> DensityField:
        found = self._densities.get((estimated, integrals))
        if found is None or found.field is not self.field:
            found = DensityField(self.field, estimated, integrals)
            self._densities[estimated, integrals] = found
        return found

    def _code(self, field: nn.Module, state: Tensor, key: Any) -> nn.Module:
        """What is solved in place of the field: itself, or the same compiled."""
        if self.compile_mode is False or not self._native or state.device.type != "cpu":
            return field
        inside = self._compiled.setdefault(key, CompiledInside(True))
        try:
            return inside(field, state)
        except NotCompilable as error:
            if self.compile_mode is True:
                raise
            self._warn(f"{error}; the flow is solved without native code, as by compile=False")
            return field

    def _draw(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.noise == "gaussian":
            return _normal(tuple(like.shape), like, generator)
        device = like.device if generator is None else generator.device
        bits = torch.randint(2, like.shape, device=device, generator=generator)
        return (2 * bits - 1).to(like)

    def _base_log_prob(self, z: Tensor) -> Tensor:
        if self.base is None:
            return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))
        found = self.base.log_prob(z)
        if found.shape != z.shape[:1]:
            raise ValueError(
                f"base.log_prob must return one number for each sample, [{len(z)}], got shape "
                f"{tuple(found.shape)}; torch.distributions.Independent makes one event of a vector"
            )
        return found

    def _find_dim(self) -> int:
        found = self.dim if self.dim is not None else getattr(self.field, "dim", None)
        if not isinstance(found, int):
            raise ValueError("dim must be given to CNF for sample, as field has no dim")
        return found

    def _check_samples(self, name: str, x: Any) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
        if full_precision(x).dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{name} must be of float32 or float64, got {x.dtype}")
        if x.dim() != 2 or x.shape[1] == 0 or self.dim not in (None, x.shape[1]):
            wanted = "D" if self.dim is None else self.dim
            raise ValueError(f"{name} must be of shape [B, {wanted}], got {tuple(x.shape)}")

    def __getstate__(self) -> dict[str, Any]:
        # A copy has the value of the penalty without the autograd graph of the call that made it.
        return {**self.__dict__, "regularization": self.regularization.detach()}

    def extra_repr(self) -> str:
        return (
            f"method={self.method}, rtol={self.rtol}, atol={self.atol}, t=[{self.t0}, {self.t1}], "
            f"trace={self.trace}"
        )


def _normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.randn(shape, dtype=like.dtype, device=device, generator=generator).to(like.device)


def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
