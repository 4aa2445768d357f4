"""A neural ODE that classifies scikit-learn's digits.

A linear encoder, the solution of an ODE at t = 1, a linear decoder: an ``nn.Sequential`` like any
other. The field is a multilayer perceptron, so the fused engine solves it, forward and backward,
without a call of Python. Prints accuracy, evaluations of the field and what training takes without
the fused engine.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnode.datasets import load
from fastnode.nn import MLPField, NeuralODE


class Opaque(nn.Module):
    """A field that nothing is known of but how to call it."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.field(t, z)


def train(model: nn.Sequential, x: Tensor, y: Tensor, epochs: int) -> float:
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    generator, start = torch.Generator().manual_seed(0), time.perf_counter()
    for epoch in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(128):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
        if (epoch + 1) % 10 == 0:
            print(f"  epoch {epoch + 1}: loss {loss.item():.3f}, NFE {model[1].nfe}")
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one epoch only")
    epochs = 1 if parser.parse_args().quick else 30
    data, seconds = load("digits"), []
    for name, wrap in (("fused engine", lambda field: field), ("any field", Opaque)):
        torch.manual_seed(0)
        ode = NeuralODE(wrap(MLPField(32, 64, activation="tanh")), "dopri5", 1e-4, 1e-4)
        model = nn.Sequential(nn.Linear(64, 32), ode, nn.Linear(32, 10))
        print(f"{name}:")
        seconds.append(train(model, data.x_train, data.y_train, epochs))
        with torch.no_grad():
            right = (model(data.x_test).argmax(1) == data.y_test).float().mean().item()
        print(f"  test accuracy {100 * right:.1f} %, NFE {ode.nfe}, {seconds[-1]:.1f} s")
    print(f"the fused engine: {seconds[1] / seconds[0]:.1f} times as fast")


if __name__ == "__main__":
    main()
