from __future__ import annotations

import pytest
import torch

import fastnode
from fastnode.adjoints.discrete import retained_graph

DISCRETE = {
    "checkpoint": "checkpoint",
    "revolve": fastnode.Revolve(2),
    "reversible": "reversible",
}


class Net(torch.nn.Module):
    """tanh network over [..., dim] that depends on time, with a parameter that it does not use."""

    def __init__(self, dim=4, dtype=torch.float64, activation=torch.tanh):
        super().__init__()
        torch.manual_seed(0)
        self.inner = torch.nn.Linear(dim, 16, dtype=dtype)
        self.outer = torch.nn.Linear(16, dim, dtype=dtype)
        self.unused = torch.nn.Parameter(torch.ones(3, dtype=dtype))
        self.activation = activation

    def forward(self, t, y, w=1.0):
        time = t if t.dim() == 0 else t[:, None]
        return (self.outer(self.activation(self.inner(y))) + torch.sin(3 * time) * y) * w


@pytest.fixture(autouse=True)
def steps_are_taken_again(monkeypatch):
    """The states of tests are so small that their graphs would be kept."""
    monkeypatch.setattr(retained_graph, "ROOM", 0)


@pytest.fixture
def make_net():
    return Net


@pytest.fixture(params=DISCRETE)
def discrete(request):
    return DISCRETE[request.param]


def distance(found, wanted):
    """The largest relative distance between tensors of two lists."""
    return max(
        ((a - b).norm() / b.norm().clamp(min=1e-300)).item()
        for a, b in zip(found, wanted, strict=True)
    )


@pytest.fixture
def relative():
    return distance
