"""For the API reference: ``rtol, atol: text`` stands for two arguments, each with a default."""

from __future__ import annotations

import re

import griffe

ENTRY = re.compile(r"(?P<indent> +)(?P<names>\w+(?:, \w+)+): (?P<text>.*)")


def split_arguments(docstring: str) -> str:
    """The docstring with an entry for each argument of an ``Args:`` section."""
    done: list[str] = []
    lines = docstring.splitlines()
    inside = False
    while lines:
        line = lines.pop(0)
        if line and not line.startswith(" "):
            inside = line == "Args:"
        match = ENTRY.fullmatch(line) if inside else None
        if match is None:
            done.append(line)
            continue
        deeper = match["indent"] + " "
        more = []
        while lines and lines[0].startswith(deeper):
            more.append(lines.pop(0))
        for name in match["names"].split(", "):
            done += [f"{match['indent']}{name}: {match['text']}", *more]
    return "\n".join(done)


class SplitArguments(griffe.Extension):
    """Called by mkdocstrings for each object that it reads."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = split_arguments(obj.docstring.value)
