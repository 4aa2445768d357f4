"""A stepper whose steps somebody sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastnode.engines.step import Step


class Watched:
    """A stepper that tells when a step begins and shows it once it is accepted."""

    def __init__(self, stepper: Any, begin: Callable[[], None], visit: Callable[[Step], None]):
        self._stepper, self._begin, self._visit = stepper, begin, visit

    def advance(self) -> Any:
        self._begin()
        step = self._stepper.advance()
        self._visit(step)
        return step

    @property
    def rejected(self) -> int:
        return self._stepper.rejected

    @property
    def evaluations(self) -> int:
        return getattr(self._stepper, "evaluations", 0)
