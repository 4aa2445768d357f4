"""Continuous normalising flows trained by maximum likelihood: toy densities and tables.

The toy densities are those on which FFJORD was shown (Grathwohl et al. 2019, arXiv 1810.01367): a
ring of eight Gaussians, two half moons, a checkerboard. The first and the last have densities that
are known, so that their best log-likelihood is known as well. ``--density uci/power`` is the joint
density of inputs and target of a UCI set, from the folder that FASTNODE_DATA names, beside that of
a Gaussian with the same mean and covariance.

Prints the log-likelihood of samples that were held out, in nats for each sample, and saves a plot
of the density and of samples.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal
from torch.distributions import Normal as Normals

from fastnode import datasets
from fastnode.nn import CNF
from fastnode.plots import new_figure

TOYS = ("8gaussians", "moons", "checkerboard")


class ConcatSquash(nn.Module):
    """A linear layer with a gate and a shift that depend on the time, as in FFJORD."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)
        self.gate, self.shift = nn.Linear(1, outputs), nn.Linear(1, outputs, bias=False)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        t = t.reshape(1, 1)
        return self.layer(x) * torch.sigmoid(self.gate(t)) + self.shift(t)


class Field(nn.Module):
    def __init__(self, dim: int, hidden: int = 64) -> None:
        super().__init__()
        self.dim = dim
        sizes = ((dim, hidden), (hidden, hidden), (hidden, dim))
        self.layers = nn.ModuleList(ConcatSquash(*each) for each in sizes)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            z = layer(t, torch.tanh(z) if index else z)
        return z


def eight_gaussians() -> MixtureSameFamily:
    angles = torch.arange(8) * math.pi / 4
    centres = 2.83 * torch.stack([angles.cos(), angles.sin()], dim=1)
    parts = Independent(Normals(centres, torch.full((8, 2), 0.35)), 1)
    return MixtureSameFamily(Categorical(torch.ones(8)), parts)


def toy(name: str, count: int) -> Tensor:
    """Samples [count, 2]."""
    if name == "8gaussians":
        return eight_gaussians().sample((count,))
    if name == "moons":
        angle = torch.rand(count) * math.pi
        moon = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=1)
        sign = torch.randint(2, (count, 1)) * 2 - 1
        return 1.5 * sign * moon + 0.1 * torch.randn(count, 2)
    # Squares of side 2 in [-4, 4]^2, every other one.
    x = torch.rand(count) * 8 - 4
    row = torch.randint(2, (count,)) * 2 + torch.floor(x / 2) % 2
    return torch.stack([x, 2 * row - 4 + 2 * torch.rand(count)], dim=1)


def best(name: str, x: Tensor) -> str:
    """The mean log-likelihood under the density itself, where it is known."""
    if name == "8gaussians":
        return f", {eight_gaussians().log_prob(x).mean():.3f} at best"
    return f", {-math.log(32):.3f} at best" if name == "checkerboard" else ""


def table(name: str) -> tuple[Tensor, Tensor]:
    """Rows for training and rows held out, inputs and target side by side, standardised."""
    data = datasets.load(name)
    train = torch.cat([data.x_train, data.y_train], dim=1)
    test = torch.cat([data.x_test, data.y_test], dim=1)
    keep = train.std(0) > 1e-6
    return train[:, keep], test[:, keep]


def train(flow: CNF, rows: Tensor | str, steps: int, batch: int) -> float:
    """Maximises the likelihood of batches of rows, or of new samples of a toy; the seconds."""
    optimizer = torch.optim.Adam(flow.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    start = time.perf_counter()
    for step in range(1, steps + 1):
        if isinstance(rows, str):
            x = toy(rows, batch)
        else:
            x = rows[torch.randint(len(rows), (batch,))]
        loss = -flow.log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % max(steps // 5, 1) == 0:
            print(f"  step {step}: log-likelihood {-loss.item():.3f}, NFE {flow.nfe}", flush=True)
    return time.perf_counter() - start


def plot(flow: CNF, x: Tensor, path: Path) -> None:
    """Data and samples of the first two columns, and in the plane the density."""
    planar = x.shape[1] == 2
    figure = new_figure("examples/cnf.py", 12 if planar else 8, 4)
    axes = figure.subplots(1, 3 if planar else 2)
    for ax, title, points in zip(axes, ("data", "samples"), (x, flow.sample(len(x))), strict=False):
        ax.scatter(*points[:, :2].T, s=2, alpha=0.5)
        ax.set(title=title, xlim=x[:, 0].aminmax(), ylim=x[:, 1].aminmax(), aspect="equal")
    if planar:
        line = torch.linspace(-4.5, 4.5, 100)
        with torch.no_grad():
            density = flow.log_prob(torch.cartesian_prod(line, line)).exp().reshape(100, 100)
        axes[2].imshow(density.T, extent=(-4.5, 4.5, -4.5, 4.5), origin="lower")
        axes[2].set(title="density")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    known = ", ".join((*TOYS, *(f"uci/{name}" for name in datasets.UCI)))
    parser.add_argument("--density", nargs="+", default=TOYS, help=f"some of {known}")
    parser.add_argument("--trace", choices=("exact", "hutchinson"), default="exact")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--out", type=Path, default=Path("out/cnf"), help="folder for the plots")
    parser.add_argument("--quick", action="store_true", help="a few steps only")
    arguments = parser.parse_args()
    steps = 5 if arguments.quick else arguments.steps
    for name in arguments.density:
        torch.manual_seed(0)
        if name in TOYS:
            rows, held_out = name, toy(name, 2000)
            compared = best(name, held_out)
        else:
            rows, held_out = table(name)
            gaussian = MultivariateNormal(rows.mean(0), torch.cov(rows.T))
            compared = f", {gaussian.log_prob(held_out).mean():.3f} by a Gaussian"
        flow = CNF(Field(held_out.shape[1]), trace=arguments.trace)
        print(name)
        seconds = train(flow, rows, steps, arguments.batch)
        with torch.no_grad():
            found = flow.log_prob(held_out, trace="exact").mean()
        print(f"  held out: log-likelihood {found:.3f}{compared}; {seconds:.0f} s of training")
        plot(flow, held_out, arguments.out / f"{name.replace('/', '_')}.png")


if __name__ == "__main__":
    main()
