"""States, times and a field that the tests of the torchdiffeq face share."""

from __future__ import annotations

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


def state(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def grid(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


TIMES = {
    "forward": grid(0.0, 0.3, 1.0, 2.5),
    "backward": grid(2.5, 1.0, 0.3, -0.2),
    "two": grid(0.0, 1.0),
    "one": grid(0.7),
}
