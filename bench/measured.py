"""The tables of README and docs by name, and how their numbers are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bench.results_file import Results

SOURCES: dict[str, Callable[[Results], str]] = {}


def source(make: Callable[[Results], str]) -> Callable[[Results], str]:
    SOURCES[make.__name__] = make
    return make


def number(x: float) -> str:
    """Three digits, two below 1."""
    if x >= 1000:
        return f"{x:,.0f}"
    return f"{x:#.3g}".rstrip(".") if x >= 1 else f"{x:.2g}"


def tiny(x: float) -> str:
    return "0" if x == 0 else f"{x:.0e}"


def power(x: float) -> str:
    """A tolerance: 1e-6, 1.4e-8."""
    mantissa, exponent = f"{x:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
