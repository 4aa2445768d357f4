"""What no fused solve goes below: its arithmetic, each kind alone at the rate it reaches here.

The field's multiplications go at the machine's peak of fused multiply-adds, its activations at the
rate of the kernel on numbers in the first-level cache. Combinations of stages, error norms, packing
of weights and the synchronisation of threads count as nothing.
"""

from __future__ import annotations

import math
import time
from functools import cache

import fma_peak
import torch

from fastnode import extension
from fastnode.engines.fused.mlp import ACTIVATIONS

#: Numbers of float32 that stay in the first-level cache beside their results.
NEAR = 2048


@cache
def activation_seconds(name: str) -> float:
    """Of one number on one thread, by the best of many calls, above that of relu, whose call
    copies as much and computes next to nothing. Both in turn: the best of one and that of the other
    are then of the same clock."""
    native = extension.native()
    instructions = native.mlp_instruction_sets()[-1]
    x = torch.linspace(-3, 3, NEAR)
    best = dict.fromkeys((name, "relu"), math.inf)
    for _ in range(5000):
        for which in best:
            start = time.perf_counter()
            native.mlp_activate(instructions, list(ACTIVATIONS).index(which), x)
            best[which] = min(best[which], time.perf_counter() - start)
    return (best[name] - best["relu"]) / NEAR


def least_microseconds(
    size: tuple[int, int, int], activation: str, nfe: int, threads: int, gradient: bool
) -> float | None:
    """Of ``nfe`` evaluations of a field of two layers, (state, hidden, batch); with gradients of
    the products back to the inputs and to the weights as well, once each, as if all that the
    forward pass computed were at hand. None without a compiler."""
    peak = fma_peak.measure(threads)
    if peak is None:
        return None
    state, hidden, batch = size
    operations = 4 * state * hidden * batch * nfe * (3 if gradient else 1)
    numbers = hidden * batch * nfe
    return 1e6 * (operations / peak + numbers * activation_seconds(activation) / threads)
