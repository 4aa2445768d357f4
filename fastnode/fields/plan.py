"""Where the values of a program lie in memory."""

from __future__ import annotations

from collections.abc import Sequence

from fastnode.fields.ir import PARAMETERS, SAMPLE, TIME, Assign, Buffer, Program, View

#: Numbers to which places are rounded for a value of which a vector holds several elements.
ALIGNMENT = 16


def plan(program: Program, results: Sequence[View]) -> dict[int, int]:
    """Gives each local buffer its offset. Returns the numbers of each level, on SAMPLE's for each
    sample; memory of values that are no longer needed is used again there."""
    sizes = {PARAMETERS: 0, TIME: 0}
    first: dict[Buffer, int] = {}
    last: dict[Buffer, int] = {}
    for i, statement in enumerate(program.statements):
        for view in (statement.out, *statement.reads()):
            if view.buffer.place == "local":
                first.setdefault(view.buffer, i)
                last[view.buffer] = i
    for view in results:
        if view.buffer.place == "local":
            last[view.buffer] = len(program.statements)
    free = _Free()
    ending: dict[int, list[Buffer]] = {}
    for buffer in first:
        ending.setdefault(last[buffer], []).append(buffer)
    starting: dict[int, list[Buffer]] = {}
    for buffer, i in first.items():
        starting.setdefault(i, []).append(buffer)
    for i in range(len(program.statements)):
        for buffer in starting.get(i, ()):
            if buffer.level == SAMPLE:
                buffer.offset = free.take(_rounded(buffer.size))
            else:
                buffer.offset = sizes[buffer.level]
                sizes[buffer.level] += _rounded(buffer.size)
        for buffer in ending.get(i, ()):
            if buffer.level == SAMPLE:
                free.give(buffer.offset, _rounded(buffer.size))
    sizes[SAMPLE] = free.most
    return sizes


def place_results(program: Program, results: Sequence[View], names: Sequence[str]) -> None:
    """Makes results stand where they are returned: without a copy where a whole local buffer is
    one, else by an assignment."""
    for view, name in zip(results, names, strict=True):
        buffer = view.buffer
        whole = view.offset == 0 and view.contiguous() and view.numel == buffer.size
        if buffer.place == "local" and buffer.level == SAMPLE and whole:
            buffer.place = name
            continue
        out = View.whole(Buffer(view.numel, SAMPLE, name), view.sizes)
        program.statements.append(Assign(out, view))


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class _Free:
    """Memory handed out and taken back, the first part that is large enough each time."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, int]] = []
        self.most = 0

    def take(self, size: int) -> int:
        for i, (offset, room) in enumerate(self._parts):
            if room >= size:
                self._parts[i : i + 1] = [(offset + size, room - size)] if room > size else []
                return offset
        if self._parts and sum(self._parts[-1]) == self.most:
            offset, room = self._parts.pop()
            self.most = offset + size
            return offset
        self.most += size
        return self.most - size

    def give(self, offset: int, size: int) -> None:
        self._parts = sorted([*self._parts, (offset, size)])
        joined: list[tuple[int, int]] = []
        for offset, size in self._parts:
            if joined and sum(joined[-1]) == offset:
                joined[-1] = (joined[-1][0], joined[-1][1] + size)
            else:
                joined.append((offset, size))
        self._parts = joined
