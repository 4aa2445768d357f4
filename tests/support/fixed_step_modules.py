"""Modules whose solves take fixed steps, for tests of what compilers make of them."""

from __future__ import annotations

import torch
from selection import slow
from torch import nn

from fastnode.nn import EncodedODE, MLPField, NeuralODE, ODEBlock, SimulationFreeNODE


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, t, z):
        return self.net(z) * torch.cos(t)


def field(kind):
    return MLPField(4, 8) if kind == "MLPField" else Plain()


def encoded(kind, cls=EncodedODE, **arguments):
    return cls(nn.Linear(5, 4), field(kind), nn.Linear(4, 3), **arguments)


def simulation_free(kind):
    nets = nn.Linear(5, 4), nn.Linear(3, 4), nn.Linear(4, 3)
    return SimulationFreeNODE(*nets, field(kind))


MODULES = {
    "NeuralODE": lambda kind: NeuralODE(field(kind), "rk4"),
    "NeuralODE, step_size": lambda kind: NeuralODE(
        field(kind), "midpoint", options={"step_size": 0.3}
    ),
    "NeuralODE, back in time": lambda kind: NeuralODE(field(kind), "euler", t0=1.0, t1=-0.5),
    "NeuralODE, checkpoint": lambda kind: NeuralODE(field(kind), "rk4", adjoint="checkpoint"),
    "ODEBlock": lambda kind: ODEBlock(field(kind), steps=3, method="rk4"),
    "ODEBlock, backprop": lambda kind: ODEBlock(field(kind), steps=2, adjoint="backprop"),
    "EncodedODE": lambda kind: encoded(kind, method="heun3", steps=3),
    "SimulationFreeNODE": simulation_free,
}


def build(name, kind):
    torch.manual_seed(0)
    model = MODULES[name](kind)
    size = 5 if isinstance(model, EncodedODE) else 4
    return model, torch.randn(6, size)


_PAIRS = [(name, ("MLPField", "plain")[i % 2]) for i, name in enumerate(MODULES)]
_FAST = "NeuralODE, step_size", "ODEBlock"
#: Each of them once, with both kinds of fields.
CASES = [pair if pair[0] in _FAST else slow(*pair) for pair in _PAIRS]
