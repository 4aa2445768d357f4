"""Four pairs whose straight lines cross: why simulation-free training needs learned embeddings.

Three models learn to carry each of four points to its partner. A neural ODE trained through the
solver pairs them right, along winding paths that cost many evaluations. Flow matching in the data's
own space cannot: its straight lines cross, the field is their mean there, and points leave with the
wrong partner. Flow matching between learned embeddings keeps the lines apart and stays straight.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fastnode
from fastnode.nn import MLPField, NeuralODE, SimulationFreeNODE

POINTS = torch.tensor([[-1.0, y] for y in (1.5, 0.5, -0.5, -1.5)])
PARTNERS = torch.tensor([[1.0, -y] for y in (1.5, 0.5, -0.5, -1.5)])


@dataclass
class Outcome:
    """One model: its trajectories [T, 4, 2 or embedding], and how it does with two solvers."""

    name: str
    trajectories: Tensor
    right_one_step: int
    right_dopri5: int
    nfe: int


def count_right(prediction: Tensor) -> int:
    return int((torch.cdist(prediction, PARTNERS).argmin(1) == torch.arange(4)).sum())


def minimise(model: nn.Module, loss, steps: int, lr: float) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def follow(field: nn.Module, start: Tensor) -> Tensor:
    times = torch.linspace(0, 1, 41)
    return fastnode.odeint(field, start, times, rtol=1e-5, atol=1e-5).detach()


def through_the_solver(steps: int) -> Outcome:
    torch.manual_seed(0)
    ode = NeuralODE(MLPField(2, 32, activation="tanh"))
    minimise(ode, lambda: (ode(POINTS) - PARTNERS).square().mean(), steps, lr=1e-2)
    with torch.no_grad():
        right = count_right(ode(POINTS))
        nfe = ode.nfe
        one_step = POINTS + ode.field(torch.tensor(0.0), POINTS)
    return Outcome("NODE", follow(ode.field, POINTS), count_right(one_step), right, nfe)


def simulation_free(name: str, model: SimulationFreeNODE, steps: int) -> Outcome:
    x, y = POINTS.repeat(32, 1), PARTNERS.repeat(32, 1)
    minimise(model, lambda: model.loss(x, y).total, steps, lr=3e-3)
    with torch.no_grad():
        one_step = count_right(model(POINTS))
        right = count_right(model(POINTS, method="dopri5"))
        nfe = model.nfe
        start = model.encoder(POINTS)
    return Outcome(name, follow(model.field, start), one_step, right, nfe)


def in_data_space(steps: int) -> Outcome:
    torch.manual_seed(0)
    same = nn.Identity()
    model = SimulationFreeNODE(same, same, same, MLPField(2, 64), label_noise=0.0)
    return simulation_free("flow matching in data space", model, steps)


def in_embeddings(steps: int) -> Outcome:
    torch.manual_seed(0)
    model = SimulationFreeNODE(
        encoder=nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 8)),
        label_encoder=nn.Linear(2, 8),
        decoder=nn.Linear(8, 2),
        field=MLPField(8, 64),
        label_noise=1.0,
    )
    return simulation_free("flow matching in embeddings", model, steps)


def run(quick: bool = False) -> list[Outcome]:
    through, free = (8, 30) if quick else (400, 1500)
    return [through_the_solver(through), in_data_space(free), in_embeddings(free)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps only")
    for outcome in run(parser.parse_args().quick):
        print(
            f"{outcome.name:<30} right pairs: Euler-1 {outcome.right_one_step}/4, "
            f"dopri5 {outcome.right_dopri5}/4 with {outcome.nfe} evaluations"
        )


if __name__ == "__main__":
    main()
