"""Which cases `make test` leaves to `make test-slow`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow(*values: Any) -> Any:
    """A case that is marked slow."""
    return pytest.param(*values, marks=pytest.mark.slow)


def slow_but(values: Iterable[Any], *fast: Any) -> list[Any]:
    """All values as cases, of which only these are fast."""
    return [value if value in fast else slow(value) for value in values]
