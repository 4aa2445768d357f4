"""A latent ODE on irregularly observed spirals, with and without the fused engine.

An encoder reads a series backwards with a GRU and gives a distribution of the latent state at its
start; a decoder reads the state's path (Chen et al. 2018, arXiv 1806.07366, section 5). Each series
is seen at 30 random ones of 100 uneven times, through noise; the model then says where it is at the
others, and where it goes afterwards. ``fastnode.fuse(field)`` is the only difference of the two
trainings.
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from torch import Tensor, nn

import fastnode

# In float32 rounding alone parts two trainings within some hundred steps.
torch.set_default_dtype(torch.float64)
SEEN, NOISE, LATENT = 30, 0.05, 6
#: The standard deviation with which the model explains an observation.
SPREAD = 0.2
LATER = torch.linspace(3, 4, 20)


class LatentODE(nn.Module):
    def __init__(self, latent: int = LATENT, hidden: int = 32, fuse: bool = True) -> None:
        super().__init__()
        self.gru = nn.GRU(3, hidden, batch_first=True)
        self.start = nn.Linear(hidden, 2 * latent)
        self.field: nn.Module = Field(latent, hidden)
        if fuse:
            self.field = fastnode.fuse(self.field)  # the only change
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    def encode(self, times: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of the state at time 0, each [B, latent]."""
        gaps = torch.diff(times, dim=1, prepend=times.new_zeros(len(times), 1))
        _, last = self.gru(torch.cat([x, gaps[..., None]], dim=2).flip(1))
        mean, log_variance = self.start(last[0]).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, z0: Tensor, ts: Tensor) -> Tensor:
        """The series at all times, [B, T, 2]."""
        path = fastnode.odeint(self.field, z0, ts, rtol=1e-5, atol=1e-5)
        return self.decoder(path).transpose(0, 1)

    def loss(self, ts: Tensor, seen: Tensor, x: Tensor, noise: Tensor) -> Tensor:
        """Minus the evidence lower bound, for each observed number."""
        mean, log_variance = self.encode(ts[seen], x)
        path = self.decode(mean + noise * (0.5 * log_variance).exp(), ts)
        found = path.take_along_dim(seen[..., None], dim=1)
        misfit = 0.5 * ((found - x) / SPREAD).square().sum()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
        return (misfit + divergence) / x.numel()


class Field(nn.Module):
    def __init__(self, latent: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(latent, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.ELU(),
            nn.Linear(hidden, latent),
        )  # fmt: skip

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.net(z)


def spirals(ts: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Spirals of random phase and size that wind up or down, [count, T, 2]."""
    phase = 2 * math.pi * torch.rand(count, 1, generator=generator)
    turns = torch.where(torch.rand(count, 1, generator=generator) < 0.5, -1.0, 1.0)
    size = 0.5 + 0.5 * torch.rand(count, 1, generator=generator)
    radius, angle = size * (-0.25 * ts).exp(), phase + turns * 2.5 * ts
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=2)


def batch(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Uneven times, which of them each series is seen at, what is seen, and the truth."""
    ts = torch.cat([torch.zeros(1), (3 * torch.rand(99, generator=generator)).sort().values])
    clean = spirals(torch.cat([ts, LATER]), count, generator)
    seen = torch.rand(count, 100, generator=generator).argsort(dim=1)[:, :SEEN].sort().values
    x = clean.take_along_dim(seen[..., None], dim=1)
    return ts, seen, x + NOISE * torch.randn(x.shape, generator=generator), clean


def train(fuse: bool, steps: int) -> tuple[LatentODE, list[float], float]:
    torch.manual_seed(0)
    model = LatentODE(fuse=fuse)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses, start = [], time.perf_counter()
    for _ in range(steps):
        ts, seen, x, _ = batch(64, generator)
        optimizer.zero_grad()
        loss = model.loss(ts, seen, x, torch.randn(64, LATENT, generator=generator))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses, time.perf_counter() - start


@torch.no_grad()
def errors(model: LatentODE) -> tuple[float, float]:
    """Root mean square distance to the truth between what is seen, and later than that."""
    ts, seen, x, clean = batch(256, torch.Generator().manual_seed(1))
    mean, _ = model.encode(ts[seen], x)
    squares = (model.decode(mean, torch.cat([ts, LATER])) - clean).square().mean((0, 2))
    return squares[:100].mean().sqrt().item(), squares[100:].mean().sqrt().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps only")
    steps = 5 if parser.parse_args().quick else 600
    curves, seconds = [], []
    for name, fuse in (("unfused", False), ("fused", True)):
        model, curve, took = train(fuse, steps)
        between, later = errors(model)
        curves.append(curve)
        seconds.append(took)
        print(
            f"{name:>8}: {took:5.1f} s, loss {curve[0]:.1f} to {curve[-1]:.2f}, error between "
            f"observations {between:.3f}, beyond them {later:.3f} (noise {NOISE})"
        )
    apart = max(abs(a - b) / abs(a) for a, b in zip(*curves, strict=True))
    print(f"fused: {seconds[0] / seconds[1]:.1f} times as fast, the same curve up to {apart:.0e}")


if __name__ == "__main__":
    main()
