"""The log density of a continuous normalising flow by quadrature along its path.

A field carries the data to a normal density while the log density changes by the field's divergence
(Chen et al. 2018, arXiv 1806.07366, theorem 1). The usual code solves the state (y, log density)
together, with the divergence by autograd inside the field: ``fuse`` cannot read that
(``fastnode.nn.CNF`` compiles it, where there is a compiler). But the log density does not act back
on y. So it is an integral along the path, and Gauss's quadrature at twelve times of the solution
gives it, with the divergence at all of them in one call. Then the field itself is all that is
solved, and ``fastnode.fuse(field)`` is the only change that the fused engine needs.

Trains the usual code, the quadrature and the quadrature with the fused field from the same start.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np
import torch
from torch import Tensor, nn

import fastnode

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


class Field(nn.Module):
    """An ordinary module: ``t`` is a number, or [N, 1] with one time for each row of y."""

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(),
            nn.Linear(hidden, 2),
        )  # fmt: skip

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(torch.cat([y, t.expand(y.shape[0], 1)], dim=1))


def divergence(field: nn.Module, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The field and the exact trace of its Jacobian, [N], both with gradients."""
    with torch.enable_grad():
        y = y if y.requires_grad else y.requires_grad_()
        derivative = field(t, y)
        rows = [
            torch.autograd.grad(derivative[:, i].sum(), y, create_graph=True)[0][:, i]
            for i in (0, 1)
        ]
    return derivative, rows[0] + rows[1]


def usual(field: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The end of the path and the integral of the divergence, solved as one state."""

    def both(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        derivative, trace = divergence(field, t, state[0])
        return derivative, trace.unsqueeze(1)

    start = (x, x.new_zeros(len(x), 1))
    z, integral = fastnode.odeint(both, start, torch.tensor([0.0, 1.0]), **TOLERANCE)
    return z[-1], integral[-1, :, 0]


def quadrature(field: nn.Module, x: Tensor, nodes: int = 12) -> tuple[Tensor, Tensor]:
    """The same with the integral by Gauss's quadrature along the path."""
    places, weights = np.polynomial.legendre.leggauss(nodes)
    inner = torch.from_numpy(places / 2 + 0.5).float()
    ts = torch.cat([torch.zeros(1), inner, torch.ones(1)])
    path = fastnode.odeint(field, x, ts, **TOLERANCE)
    times = inner.repeat_interleave(len(x)).unsqueeze(1)
    _, traces = divergence(field, times, path[1:-1].reshape(-1, 2))
    return path[-1], torch.from_numpy(weights / 2).float() @ traces.view(nodes, -1)


def log_density(flow, field: nn.Module, x: Tensor) -> Tensor:
    z, integral = flow(field, x)
    return -0.5 * z.square().sum(1) - math.log(2 * math.pi) + integral


def sample(count: int, generator: torch.Generator) -> Tensor:
    """Two interleaved half moons."""
    angle = torch.rand(count, generator=generator) * math.pi
    moon = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=1)
    sign = torch.randint(2, (count, 1), generator=generator) * 2 - 1
    return 1.5 * sign * moon + 0.1 * torch.randn(count, 2, generator=generator)


def train(flow, fuse: bool, steps: int) -> tuple[nn.Module, list[float], float]:
    torch.manual_seed(0)
    field = Field()
    if fuse:
        field = fastnode.fuse(field)  # the only change
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(field.parameters(), 5e-3)
    losses, start = [], time.perf_counter()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = -log_density(flow, field, sample(256, generator)).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return field, losses, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps only")
    steps = 5 if parser.parse_args().quick else 200
    runs = {"usual": (usual, False), "quadrature": (quadrature, False), "fused": (quadrature, True)}
    curves, seconds = {}, {}
    for name, (flow, fuse) in runs.items():
        field, curves[name], seconds[name] = train(flow, fuse, steps)
        apart = max(abs(a - b) for a, b in zip(curves[name], curves["usual"], strict=True))
        print(
            f"{name:>10}: {seconds[name]:6.1f} s, {seconds['usual'] / seconds[name]:5.1f} times as "
            f"fast, loss {curves[name][0]:.3f} to {curves[name][-1]:.3f}, "
            f"largest distance of the loss curve from the usual one {apart:.0e}"
        )
    pairs = zip(curves["fused"], curves["quadrature"], strict=True)
    print(f"fused from unfused quadrature: {max(abs(a - b) for a, b in pairs):.0e}")
    x = sample(512, torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact, found = log_density(usual, field, x), log_density(quadrature, field, x)
    print(f"quadrature's largest error of a log density: {(found - exact).abs().max():.0e}")


if __name__ == "__main__":
    main()
