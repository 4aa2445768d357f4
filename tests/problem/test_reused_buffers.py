"""Fields that return memory of their own, which their next call overwrites."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastnode
from fastnode.extension import AVAILABLE

ENGINES = ["reference", "native"] if AVAILABLE else ["reference"]
METHODS = ["dopri5", "rk4", "explicit_adams", "implicit_adams"]


class Buffered(torch.nn.Module):
    """-y W, written into a buffer."""

    def __init__(self, view=False):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([[1.0, 0.3], [-0.3, 1.0]]))
        self.view = view
        self.buffer = None

    def fresh(self, t, y):
        return -y @ self.weight

    def forward(self, t, y):
        if self.buffer is None or self.buffer.shape[0] < len(y):
            self.buffer = torch.zeros(len(y), 2)
        out = self.buffer[: len(y)]
        out.copy_(self.fresh(t, y))
        return out if self.view or len(y) < len(self.buffer) else self.buffer


def start():
    return torch.randn(3, 2, generator=torch.Generator().manual_seed(0))


def times():
    return torch.linspace(0, 1, 9)


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("engine", ENGINES)
class TestBuffers:
    def test_without_gradients(self, engine, method, view):
        field = Buffered(view)
        solve = {"method": method, "engine": engine, "rtol": 1e-4, "atol": 1e-4}
        with torch.no_grad():
            found = fastnode.odeint(field, start(), times(), **solve)
            expected = fastnode.odeint(field.fresh, start(), times(), **solve)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)

    def test_with_gradients(self, engine, method, view):
        field = Buffered(view)

        def run(func):
            y0 = start().requires_grad_()
            ys = fastnode.odeint(
                func, y0, times(), method=method, engine=engine, rtol=1e-4, atol=1e-4
            )
            return ys.detach(), *torch.autograd.grad(ys[-1].sum(), (y0, field.weight))

        for found, expected in zip(run(field), run(field.fresh), strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("per_sample", [False, True])
def test_memory_of_numpy(engine, per_sample):
    buffer = np.zeros((3, 2), dtype=np.float32)

    def field(t, y):
        np.multiply(y.numpy(), -1, out=buffer)
        return torch.from_numpy(buffer)

    ts = torch.tensor([0.0, 1.0], dtype=torch.float64)
    options = {"engine": engine, "per_sample": per_sample}
    found = fastnode.solve(field, start(), ts, **options)
    expected = fastnode.solve(lambda t, y: -y, start(), ts, **options)
    torch.testing.assert_close(found.ys, expected.ys, rtol=0, atol=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_per_sample_steps_and_tuples(engine):
    buffer = torch.zeros(3, 2)

    def field(t, y):
        return buffer[: len(y)].copy_(-y)

    ts = torch.tensor([0.0, 1.0], dtype=torch.float64)
    found = fastnode.solve(field, start(), ts, engine=engine, per_sample=True)
    expected = fastnode.solve(lambda t, y: -y, start(), ts, engine=engine, per_sample=True)
    torch.testing.assert_close(found.ys, expected.ys, rtol=0, atol=0)

    def pair(t, y):
        return buffer.copy_(-y[0]), -y[1]

    state = (start(), start())
    found = fastnode.solve(pair, state, ts, engine=engine).ys
    expected = fastnode.solve(lambda t, y: (-y[0], -y[1]), state, ts, engine=engine).ys
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_results_saved_for_gradients_are_not_copied(engine):
    """What tanh saves is kept elsewhere, too, and nobody writes into it."""
    returned = []

    def field(t, y):
        returned.append(torch.tanh(y))
        return returned[-1]

    y0 = start().requires_grad_()
    found = fastnode.odeint(field, y0, torch.tensor([0.0, 0.1]), method="euler", engine=engine)
    names, node = [], found.grad_fn
    todo = [node]
    while todo:
        node = todo.pop()
        if node is not None:
            names.append(type(node).__name__)
            todo += [each for each, _ in node.next_functions]
    assert "CloneBackward0" not in names
