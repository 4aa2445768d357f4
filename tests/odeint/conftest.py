from __future__ import annotations

import pytest
import torch


class Net(torch.nn.Module):
    """tanh MLP over [.., dim] that depends on time and counts its evaluations."""

    def __init__(self, dim=4, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.inner = torch.nn.Linear(dim, 16, dtype=dtype)
        self.outer = torch.nn.Linear(16, dim, dtype=dtype)
        self.nfe = 0

    def forward(self, t, y):
        self.nfe += 1
        return self.outer(torch.tanh(self.inner(y))) + torch.sin(3 * t) * y


@pytest.fixture
def make_net():
    return Net
