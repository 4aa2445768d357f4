"""Timing as a ratio: our code against references, interleaved in one run, after both agreed."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

Call = Callable[[], Any]


def full(*values: Any) -> list[Any]:
    """Parameters of a benchmark that add little to others: measured with --full alone."""
    return [pytest.param(value, marks=pytest.mark.full) for value in values]


def seconds(call: Call, iterations: int, settle: bool = True) -> float:
    """Of one call; to ``settle`` is to call once untimed, so that the heap is as this contestant
    leaves it, and not as its rival did."""
    if settle:
        call()
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(iterations):
        call()
    wait()
    return (time.perf_counter() - start) / iterations


def compare(
    benchmark: Any,
    subject: str,
    case: str,
    ours: Call,
    references: Mapping[str, Call],
    *,
    rounds: int = 12,
    budget: float = 0.02,
    warm: int = 3,
    **facts: Any,
) -> dict[str, float]:
    """Times ``ours`` by pytest-benchmark and each reference in the setup of every round.

    After ``warm`` calls of each and, where they are more than one, a round that does not count,
    every round times every contestant once for about ``budget`` seconds, so that a slow moment of
    the machine falls on all of them. The references take turns in coming first: after some of them
    the heap is such that large tensors are mapped anew in every call, which would make a contestant
    slower that always followed. Returns how many times longer a reference takes, the median of the
    rounds' ratios: where the machine changes its pace between rounds, that of two medians would
    compare different moments. Ratios and ``facts`` are kept in the JSON.
    """
    # Calls so long that one warms up are those of which a round more would take longest.
    uncounted = int(warm > 1)
    calls = {"fastnode": ours, **references}
    each = {name: seconds(call, warm) for name, call in calls.items()}
    iterations = {name: max(1, int(budget / max(each[name], 1e-7))) for name in calls}
    # What takes long takes little of it for the heap, and the time is better spent on rounds.
    settles = {name: each[name] < 5 * budget for name in calls}
    times: dict[str, list[float]] = {name: [] for name in references}
    own: list[float] = []

    def setup() -> None:
        gc.collect()
        turn = len(own) % max(1, len(references))
        for name in [*references, *references][turn : turn + len(references)]:
            times[name].append(seconds(references[name], iterations[name], settles[name]))

    def run() -> None:
        own.append(seconds(ours, iterations["fastnode"], settles["fastnode"]))

    # What was there before stays and is not looked at again: with all rivals loaded that would take
    # longer than most rounds.
    gc.collect()
    gc.freeze()
    benchmark.pedantic(run, setup=setup, rounds=rounds, warmup_rounds=uncounted)
    gc.unfreeze()
    own_median = statistics.median(own[uncounted:])
    medians = {name: statistics.median(values[uncounted:]) for name, values in times.items()}
    ratios = {
        name: statistics.median(
            a / b for a, b in zip(values[uncounted:], own[uncounted:], strict=True)
        )
        for name, values in times.items()
    }
    benchmark.extra_info.update(
        subject=subject,
        case=case,
        ratios=ratios,
        microseconds=1e6 * own_median,
        reference_microseconds={name: 1e6 * median for name, median in medians.items()},
        **facts,
    )
    return ratios
