"""States, times and fields of the tests of gradients."""

from __future__ import annotations

import torch

from fastnode.tableaus import METHODS

ADAPTIVE = [name for name, tableau in METHODS.items() if tableau.error is not None]
T = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
Y0 = torch.tensor([1.0, -0.3], dtype=torch.float64)


def times(*values, grad=False):
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def state(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def steady(method):
    """Options with which the steps do not depend on the values."""
    if method not in ADAPTIVE:
        return {"step_size": 0.2}
    return {"first_step": 0.2, "max_step": 0.2, "rtol": 1e3, "atol": 1e3}


class Field(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.used = torch.nn.Linear(2, 2, dtype=torch.float64)
        self.unused = torch.nn.Linear(2, 2, dtype=torch.float64)

    def forward(self, t, y):
        return torch.tanh(self.used(y)) * torch.cos(t)


def decay(t, y):
    return -y
