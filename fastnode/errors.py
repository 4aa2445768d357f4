"""The errors that a solve raises when it cannot continue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from torch import Tensor


class SolverError(RuntimeError):
    """A solve could not be finished.

    Attributes:
        time: time that the solver had reached (units of ``t``), or None.
        step: signed size of the step it was about to take or had tried, or None.
        samples: of a per-sample solve the indices of the samples that could not be finished;
            ``time`` and ``step`` are those of the first. Empty otherwise.
    """

    def __init__(
        self,
        message: str,
        *,
        time: float | None = None,
        step: float | None = None,
        samples: Sequence[int] = (),
    ):
        super().__init__(message)
        self.time = time
        self.step = step
        self.samples = tuple(samples)


# torchdiffeq uses assert for these: code that catches AssertionError keeps working.
class StepSizeUnderflow(SolverError, AssertionError):
    """The step that the tolerances ask for is too small to change the time."""


class MaxStepsExceeded(SolverError, AssertionError):
    """More than ``max_num_steps`` steps were tried between two output times."""


class NonFiniteState(SolverError, AssertionError):
    """The state or the vector field is NaN or infinite, whatever the size of the step."""


class StagesNotSolved(SolverError):
    """The equations of an implicit step were not solved to the precision of the state."""


class EventNotFound(SolverError):
    """No event was found up to the last time that the solve could reach."""


class InvalidValue(ValueError, AssertionError):
    """An argument has an invalid value."""


class InvalidType(TypeError, AssertionError):
    """An argument has an invalid type."""


def cannot_continue(
    t: float,
    h: float,
    attempts: int,
    max_num_steps: int,
    ratio: float,
    derivatives: Sequence[Tensor],
) -> NoReturn:
    """Raises the reason why a solve cannot try a step of signed size h at t.

    ``attempts`` counts the steps tried since the last output time, ``ratio`` is the error over the
    tolerance of the last one and ``derivatives`` what the vector field returned during it.
    """
    if attempts >= max_num_steps:
        raise MaxStepsExceeded(
            f"max_num_steps exceeded: {attempts} steps tried since the last output time; at "
            f"t = {t:g} the next step is {h:g}",
            time=t,
            step=h,
        )
    if not -float("inf") < ratio < float("inf"):
        raise NonFiniteState(
            f"{describe_nonfinite(derivatives)} near t = {t:.9g}, however small the step "
            f"(h = {h:g})",
            time=t,
            step=h,
        )
    raise StepSizeUnderflow(
        f"underflow in dt: at t = {t:.9g} the tolerances ask for a step of {h:g}; the problem may "
        "be stiff or singular there, or the tolerances below the precision of the state",
        time=t,
        step=h,
    )


def not_finite_at_start(t: float, y: Tensor, f: Tensor) -> NoReturn:
    """Raises for a solve whose state or vector field is not finite where it begins."""
    cause = describe_nonfinite([f]) if bool(y.isfinite().all()) else "the state is not finite"
    raise NonFiniteState(f"{cause} at t = {t:g}", time=t)


def describe_nonfinite(derivatives: Sequence[Tensor]) -> str:
    """Says whether it was NaN or infinity that the vector field returned."""
    kinds = [
        name
        for name, found in (
            ("NaN", any(bool(k.isnan().any()) for k in derivatives)),
            ("infinity", any(bool(k.isinf().any()) for k in derivatives)),
        )
        if found
    ]
    if not kinds:
        return "the error estimate is not finite"
    return f"the vector field returned {' and '.join(kinds)}"


class NotCompilable(ValueError):
    """A field that ``fastnode.compile_field`` does not take, or a loss that ``fastnode.TrainStep``
    cannot compile; the message names the operation and,
    where it is known, the line of the caller's that called it.

    ``at``: the node of a graph that stands for the operation, or the error that Python raised.
    """

    def __init__(self, reason: str, at: Any = None, what: str = "field"):
        super().__init__(f"the {what} cannot be compiled: {reason}")
        self.reason = reason
        #: The operation that stands in the way, if it is one.
        self.operation = getattr(at, "target", None)
