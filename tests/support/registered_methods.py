"""Methods that a test registers are gone after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fastnode.engines import methods
from fastnode.tableaus import METHODS


@contextmanager
def forgotten_afterwards() -> Iterator[None]:
    tables = (METHODS, methods.ADAPTIVE, methods._OWN)
    names = (methods.FIXED, methods.SOLVED, methods.NAMES)
    kept = [dict(each) for each in tables], [list(each) for each in names]
    try:
        yield
    finally:
        for each, before in zip(tables, kept[0], strict=True):
            each.clear()
            each.update(before)
        for each, before in zip(names, kept[1], strict=True):
            each[:] = before
