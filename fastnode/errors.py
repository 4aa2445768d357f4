"""What a solve raises when it cannot go on."""

from __future__ import annotations


class SolverError(RuntimeError):
    """A solve could not be finished.

    Attributes:
        time: time at which the solver stood (units of ``t``), or None.
        step: signed size of the step it was about to take or had tried, or None.
    """

    def __init__(self, message: str, *, time: float | None = None, step: float | None = None):
        super().__init__(message)
        self.time = time
        self.step = step


# torchdiffeq reports these three by assert: `except AssertionError` written for it keeps working.
class StepSizeUnderflow(SolverError, AssertionError):
    """The step that the tolerances ask for is too small to change the time."""


class MaxStepsExceeded(SolverError, AssertionError):
    """More than ``max_num_steps`` steps were tried between two output times."""


class NonFiniteState(SolverError, AssertionError):
    """The state or the vector field is NaN or infinite, whatever the size of the step."""
