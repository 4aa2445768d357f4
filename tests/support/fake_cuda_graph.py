"""Stands in for the CUDA calls of the graph engine: a capture remembers a function and a replay
calls it.

What a graph would launch on the device's fixed memory runs on the CPU's, by the same functions.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import torch
from torch import nn

import fastnode
from fastnode.engines.cuda_graph import plan, runtime

TS = torch.tensor([0.0, 1.0])


class FakeRuntime:
    """Counts what the engine asks for; ``loops`` says whether there are conditional nodes."""

    made: list[FakeRuntime] = []

    def __init__(self, device, loops=True):
        self.loops = loops
        self.captures = self.launches = self.replays = self.peeks = 0
        FakeRuntime.made.append(self)

    def ready(self):
        return None

    def uncaptured(self):
        return nullcontext()

    @contextmanager
    def forbidding_waits(self):
        yield

    def capture(self, function):
        self.captures += 1
        return function

    def replay(self, captured):
        self.replays += 1
        captured()

    def loop(self, first, body, running):
        if not self.loops:
            return None

        def launch():
            self.launches += 1
            if first is not None:
                first()
            body()
            while running.item():
                body()

        return launch

    def start_read(self, flag):
        self.peeks += 1
        value = bool(flag.item())
        return lambda: value

    def begin_use(self, buffers):
        pass

    def end_use(self):
        pass


@contextmanager
def faked(loops=True):
    """The graph engine on the CPU."""
    before = runtime.runtime_for
    runtime.runtime_for = lambda device: FakeRuntime(device, loops)
    FakeRuntime.made.clear()
    plan.clear()
    try:
        yield FakeRuntime.made
    finally:
        runtime.runtime_for = before
        plan.clear()


class Turning(nn.Module):
    """A field with a parameter and an attribute that it depends on."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
        self.scale = 1.0

    def forward(self, t, y):
        return self.scale * y @ self.weight


def run(field, y0=None, ts=TS, **options):
    """The solution by the graph engine."""
    y0 = torch.tensor([[1.0, 2.0]]) if y0 is None else y0
    return fastnode.solve(field, y0, ts, engine="graph", **options).ys
