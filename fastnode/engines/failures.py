"""Why samples of a per-sample solve cannot go on, in words."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NoReturn

from torch import Tensor

from fastnode.errors import (
    MaxStepsExceeded,
    NonFiniteState,
    SolverError,
    StepSizeUnderflow,
    describe_nonfinite,
)

#: How many samples a message lists.
LISTED = 8


class Failure(IntEnum):
    """The numbers are those of csrc/common/failure.h."""

    NONE = 0
    NOT_FINITE = 1
    UNDERFLOW = 2
    TOO_MANY_STEPS = 3

    @property
    def status(self) -> str:
        return ERRORS[self].__name__ if self else "finished"


def statuses(numbers: Tensor) -> list[str]:
    """What ``Solution.status`` says of samples, from numbers of Failure [B]."""
    names = [failure.status for failure in Failure]
    return [names[each] for each in numbers.tolist()]


ERRORS: dict[Failure, type[SolverError]] = {
    Failure.NOT_FINITE: NonFiniteState,
    Failure.UNDERFLOW: StepSizeUnderflow,
    Failure.TOO_MANY_STEPS: MaxStepsExceeded,
}


def raise_failure(
    failure: int,
    samples: Sequence[int],
    times: Sequence[float],
    steps: Sequence[float],
    derivatives: Sequence[Tensor] | None,
    max_num_steps: int,
) -> NoReturn:
    """Raises for ``samples``, which stand at ``times`` with the next steps ``steps``.

    ``derivatives`` are what the field last returned for them, each [samples, ...], or None where
    nobody kept it.
    """
    places = [
        f"sample {i} at t = {t:.9g} (h = {h:.3g})"
        for i, t, h in zip(samples[:LISTED], times, steps, strict=False)
    ]
    where = ", ".join(places)
    if len(samples) > LISTED:
        where += f" and {len(samples) - LISTED} more"
    if failure == Failure.NOT_FINITE:
        if derivatives is None:
            cause = "the state or the vector field is not finite"
        elif all(bool(each.isfinite().all()) for each in derivatives):
            cause = "the state is not finite"
        else:
            cause = describe_nonfinite(derivatives)
        reason = f"{cause}: {where}"
    elif failure == Failure.UNDERFLOW:
        reason = (
            f"underflow in dt: the tolerances ask for steps that do not change the time: {where}; "
            "the problem may be stiff or singular there, or the tolerances below the precision of "
            "the state"
        )
    else:
        reason = f"max_num_steps exceeded: {max_num_steps} steps tried: {where}"
    raise ERRORS[Failure(failure)](reason, time=times[0], step=steps[0], samples=samples)
