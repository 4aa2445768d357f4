"""What each regulariser costs: a training step with it against the same step without one."""

from __future__ import annotations

import torch
from ratio import compare

from fastnode.nn import MLPField, NeuralODE
from fastnode.regularize import RNODE, STEER, Global, Local, TayNODE

REGULARIZERS = {
    'Local("unbiased")': lambda: Local("unbiased"),
    'Local("biased")': lambda: Local("biased"),
    'Global("error")': lambda: Global("error"),
    "STEER(0.25)": lambda: STEER(0.25),
    "RNODE()": lambda: RNODE(),
    "TayNODE(2)": lambda: TayNODE(2),
}


def test_training_step(benchmark):
    torch.manual_seed(0)
    field = MLPField(64, 128, depth=2, activation="tanh")
    y0 = torch.randn(128, 64)
    models = {None: NeuralODE(field, "tsit5", 1e-5, 1e-5)}
    for name, make in REGULARIZERS.items():
        models[name] = NeuralODE(field, "tsit5", 1e-5, 1e-5, regularizer=make())

    def step(name: str | None) -> torch.Tensor:
        field.zero_grad()
        model = models[name]
        loss = model(y0).square().mean() + model.regularization
        loss.backward()
        return loss

    assert all(step(name).isfinite() for name in models)
    counts = {str(name): model.nfe for name, model in models.items()}
    compare(
        benchmark,
        "regularised training step",
        "(64, 128, 128)",
        lambda: step(None),
        {name: lambda name=name: step(name) for name in REGULARIZERS},
        rounds=10,
        evaluations=counts,
    )
