"""Why samples of a per-sample solve cannot go on, in words."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from torch import Tensor

from fastnode.errors import MaxStepsExceeded, NonFiniteState, SolverError, StepSizeUnderflow

#: How many samples a message lists.
LISTED = 8


class Failure(Enum):
    NOT_FINITE = NonFiniteState
    UNDERFLOW = StepSizeUnderflow
    TOO_MANY_STEPS = MaxStepsExceeded

    @property
    def error(self) -> type[SolverError]:
        return self.value


def describe(
    failure: Failure,
    samples: Sequence[int],
    times: Sequence[float],
    steps: Sequence[float],
    slopes: Tensor,
    max_num_steps: int,
) -> SolverError:
    """The error for ``samples``, which stand at ``times`` with the next steps ``steps``; ``slopes``
    are what the field last returned for them, [stages, samples, D]."""
    places = [
        f"sample {i} at t = {t:.9g} (h = {h:.3g})"
        for i, t, h in zip(samples[:LISTED], times, steps, strict=False)
    ]
    where = ", ".join(places)
    if len(samples) > LISTED:
        where += f" and {len(samples) - LISTED} more"
    if failure is Failure.NOT_FINITE:
        reason = f"{what_is_not_finite(slopes)}: {where}"
    elif failure is Failure.UNDERFLOW:
        reason = (
            f"underflow in dt: the tolerances ask for steps that do not change the time: {where}; "
            "the problem may be stiff or singular there, or the tolerances below the precision of "
            "the state"
        )
    else:
        reason = f"max_num_steps exceeded: {max_num_steps} steps tried: {where}"
    return failure.error(reason, time=times[0], step=steps[0], samples=samples)


def what_is_not_finite(slopes: Tensor) -> str:
    if bool(slopes.isnan().any()):
        return "the vector field returned NaN"
    if bool(slopes.isinf().any()):
        return "the vector field returned Inf"
    return "the state is not finite"
