"""Why a field cannot be compiled."""

from __future__ import annotations

from typing import Any


class NotCompilable(ValueError):
    """A field that ``fastnode.compile_field`` does not take; the message names the operation and,
    where it is known, the line of the caller's that called it."""

    def __init__(self, reason: str, at: Any = None):
        where = _line(at) if hasattr(at, "meta") else ""
        super().__init__(f"the field cannot be compiled: {reason}{where}")


def _line(node: Any) -> str:
    """The last line of a node's stack trace, which is where the field called the operation."""
    trace = node.meta.get("stack_trace") or node.stack_trace or ""
    lines = [line.strip() for line in trace.splitlines() if line.strip()]
    return f" (at {' '.join(lines[-2:])})" if len(lines) >= 2 else ""
