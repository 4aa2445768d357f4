"""Paths ``z_t = a(t) z0 + b(t) z1`` between paired end points, and the times to train them at."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from fastnode.ops import interpolant as ops
from fastnode.ops.flow_in_graph import interpolate_in_graph

Coefficient: TypeAlias = Callable[[Tensor], Tensor]


class Target:
    """The target velocity ``u = a'(t) z0 + b'(t) z1`` of a batch, not stored.

    It keeps what u is made of. :func:`fastnode.flow.flow_loss` makes u on the fly, and its gradient
    reaches z0, z1 and t in the same backward pass as that of z_t. :meth:`velocity` makes u. The end
    points must not be changed in place before: as for tensors that autograd saves, that raises
    RuntimeError.
    """

    __slots__ = ("_versions", "coef", "stand_in", "z0", "z1")

    def __init__(
        self,
        stand_in: Tensor | None,
        z0: Tensor,
        z1: Tensor,
        coef: ops.Coefficients,
        in_graph: bool = False,
    ) -> None:
        self.stand_in, self.z0, self.z1, self.coef = stand_in, z0, z1, coef
        self._versions = None if in_graph else _versions(z0, z1)

    def check_unchanged(self) -> None:
        """Raises RuntimeError if an end point was changed in place."""
        now = _versions(self.z0, self.z1)
        if now is not None and self._versions not in (None, now):
            raise RuntimeError(
                "z0 or z1, which the target velocity is made of, has been modified by an in-place "
                "operation since the state was interpolated: use Path.sample, which stores the "
                "velocity, or change a copy"
            )

    def velocity(self) -> Tensor:
        """u as a tensor of the end points' shape and dtype, differentiable to any order."""
        self.check_unchanged()
        return ops.combine(self.z0, self.z1, self.coef[2], self.coef[3])

    @property
    def shape(self) -> torch.Size:
        return self.z0.shape

    def __repr__(self) -> str:
        return f"Target(shape={tuple(self.shape)}, dtype={self.z0.dtype}, device={self.z0.device})"


def _versions(z0: Tensor, z1: Tensor) -> tuple[int, int] | None:
    """How often the tensors were changed in place; None where nothing counts that."""
    if torch.compiler.is_compiling() or z0.is_inference() or z1.is_inference():
        return None
    return z0._version, z1._version


class Path:
    """A path ``z_t = alpha(t) z0 + beta(t) z1`` with velocity ``dalpha(t) z0 + dbeta(t) z1``.

    Args:
        alpha, beta, dalpha, dbeta: functions of a tensor t of shape [B] that return a tensor of
            that shape (torch operations, so that gradients for t exist). ``dalpha`` and ``dbeta``
            are the derivatives of ``alpha`` and ``beta``; this is not checked.

    Raises:
        TypeError: one of the four is not callable.

    Source: Kim, Yoo et al., NeurIPS 2024, arXiv 2410.22918, section 3.
    """

    name = "custom"
    #: Which built-in formula the fused op `path_coefficients` computes; None for a custom path.
    _kind: int | None = None

    def __init__(
        self, alpha: Coefficient, beta: Coefficient, dalpha: Coefficient, dbeta: Coefficient
    ) -> None:
        functions = {"alpha": alpha, "beta": beta, "dalpha": dalpha, "dbeta": dbeta}
        for name, function in functions.items():
            if not callable(function):
                raise TypeError(f"{name} must be a function of t, got {type(function).__name__}")
        self.alpha, self.beta, self.dalpha, self.dbeta = alpha, beta, dalpha, dbeta

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def coefficients(self, t: Tensor, *, extrapolate: bool = False) -> Tensor:
        """The four coefficients a, b, a', b' at t as one tensor [4, B]; gradients reach t.

        Raises:
            ValueError: t leaves [0, 1] and ``extrapolate`` is False, or is not of shape [B].
            TypeError: t is not a floating tensor.
        """
        ops.check_time(t)
        return ops.as_tensor(self._coefficients(t, extrapolate))

    def _coefficients(self, t: Tensor, extrapolate: bool) -> ops.Coefficients:
        apart, kind = torch.compiler.is_compiling(), self._kind
        plain = not t.requires_grad and t.dtype in ops.ACCUMULATE and not apart
        if kind is not None and plain:
            return ops.path_coefficients(t, kind, not extrapolate)
        if not extrapolate:
            ops.check_time_range(t)
        made = [f(t) for f in (self.alpha, self.beta, self.dalpha, self.dbeta)]
        rows = tuple(torch.as_tensor(row).to(t).expand_as(t) for row in made)
        if apart and kind == Linear._kind:
            return *rows[:2], *ops.LINEAR_VELOCITY
        return rows if apart else torch.stack(rows)

    def interpolate(
        self, z0: Tensor, z1: Tensor, t: Tensor, *, extrapolate: bool = False
    ) -> tuple[Tensor, Target]:
        """The state at t and the target velocity there, the latter without storing it.

        Args:
            z0, z1: end points, one shape [B, ...], dtype and device; float32, float64, bfloat16
                or float16. Non-contiguous tensors are copied.
            t: times, floating, shape [B], in [0, 1].
            extrapolate: accept any t. On a GPU the check of a path of your own makes the host wait
                for the device.

        Returns:
            ``z_t`` of the shape and dtype of z0, and the :class:`Target`. Gradients to z0, z1 and
            t are exact through both.

        Raises:
            ValueError: shapes do not match, devices differ, or t leaves [0, 1]. For a built-in path
                on a GPU with Triton the latter is an assertion of the device's, which CUDA reports
                at a later call.
            TypeError: dtypes differ or are not floating.
        """
        found = interpolate_in_graph(self._kind, z0, z1, t)
        if found is not None:
            zt, z0, z1, coef = found
            return zt, Target(None, z0, z1, coef, True)
        z0, z1, coef = self._prepare(z0, z1, t, extrapolate)
        zt, stand_in = ops.interpolant(z0, z1, coef, store_target=False)
        if stand_in is None and torch.compiler.is_compiling():
            # A graph has no versions to compare: the end points as they are now, which a compiler
            # copies only if they change.
            z0, z1 = z0.clone(), z1.clone()
        return zt, Target(stand_in, z0, z1, coef)

    def sample(
        self, z0: Tensor, z1: Tensor, t: Tensor, *, extrapolate: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The state at t and the target velocity there, both stored.

        Arguments and errors as in :meth:`interpolate`; returns two tensors shaped as z0.
        """
        z0, z1, coef = self._prepare(z0, z1, t, extrapolate)
        zt, velocity = ops.interpolant(z0, z1, coef, store_target=True)
        assert velocity is not None
        return zt, velocity

    def draw(
        self,
        z0: Tensor,
        z1: Tensor,
        zero_probability: float = 0.1,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor, Target]:
        """Training times, the states there and the target velocity, as by :func:`sample_time` and
        :meth:`interpolate`.

        For a built-in path on a GPU with Triton, the kernel of the interpolant draws the times:
        other numbers than :func:`sample_time`, but the same for the same state of the generator.

        Args:
            z0, z1: end points as in :meth:`interpolate`.
            zero_probability, generator: as in :func:`sample_time`.

        Returns:
            t [B] in float32 (float64 for float64), ``z_t`` and the :class:`Target`.

        Raises:
            ValueError, TypeError: as :func:`sample_time` and :meth:`interpolate`.
        """
        _check_probability(zero_probability)
        if self._kind is not None and ops.samples_times(z0, z1):
            t, coef, zt, stand_in = ops.sampled_interpolant(
                z0, z1, self._kind, zero_probability, generator
            )
            return t, zt, Target(stand_in, z0, z1, coef)
        if not isinstance(z0, Tensor):
            raise TypeError(f"z0 must be a tensor, got {type(z0).__name__}")
        dtype = torch.promote_types(z0.dtype, torch.float32)
        t = sample_time(
            len(z0), zero_probability, device=z0.device, dtype=dtype, generator=generator
        )
        return t, *self.interpolate(z0, z1, t, extrapolate=True)

    def _prepare(
        self, z0: Tensor, z1: Tensor, t: Tensor, extrapolate: bool
    ) -> tuple[Tensor, Tensor, ops.Coefficients]:
        z0, z1 = ops.check_end_points(z0, z1, t)
        accumulate = torch.float64 if z0.dtype == torch.float64 else torch.float32
        if t.dtype != accumulate:
            t = t.to(accumulate)
        return z0, z1, self._coefficients(t, extrapolate)


class _BuiltIn(Path):
    def __init__(self) -> None:
        assert self._kind is not None
        super().__init__(*ops.BUILT_IN[self._kind])

    def __reduce__(self) -> tuple[type[Path], tuple[()]]:
        return type(self), ()


class Linear(_BuiltIn):
    """a = 1 - t, b = t: straight lines at constant speed."""

    name = "linear"
    _kind = 0


class Concave(_BuiltIn):
    """a = cos(pi t / 2), b = sin(pi t / 2): leaves z0 slowly and reaches z1 early."""

    name = "concave"
    _kind = 1


class Convex(_BuiltIn):
    """a = 1 - sin(pi t / 2), b = 1 - cos(pi t / 2): leaves z0 early and reaches z1 late."""

    name = "convex"
    _kind = 2


PATHS: dict[str, Callable[[], Path]] = {p.name: p for p in (Linear, Concave, Convex)}


def get_path(path: str | Path) -> Path:
    """A path by its name (``linear``, ``concave``, ``convex``); a Path is returned as it is.

    Raises:
        ValueError: the name is unknown.
        TypeError: neither a name nor a Path.
    """
    if isinstance(path, Path):
        return path
    if not isinstance(path, str):
        raise TypeError(f"path must be a name or a Path, got {type(path).__name__}")
    if path not in PATHS:
        raise ValueError(f"unknown path {path!r}, expected one of {', '.join(sorted(PATHS))}")
    return PATHS[path]()


def sample_time(
    batch: int,
    zero_probability: float = 0.1,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Training times t ~ U[0, 1), set exactly to 0 with probability ``zero_probability``.

    At t = 0 the state is the encoder's output, and t = 0 has probability zero under the uniform
    distribution: without these samples training finds a bad optimum (Kim, Yoo et al., arXiv
    2410.22918, section 4).

    Returns:
        t of shape [batch].

    Raises:
        ValueError: ``batch`` is negative or ``zero_probability`` leaves [0, 1].
        TypeError: ``dtype`` is not floating.
    """
    if batch < 0:
        raise ValueError(f"batch must be at least 0, got {batch}")
    _check_probability(zero_probability)
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be floating, got {dtype}")
    draws = torch.rand(2, batch, device=device, generator=generator, dtype=dtype)
    return torch.where(draws[1] < zero_probability, 0.0, draws[0])


def _check_probability(zero_probability: float) -> None:
    if not 0 <= zero_probability <= 1:
        raise ValueError(f"zero_probability must lie in [0, 1], got {zero_probability}")
