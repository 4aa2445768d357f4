"""What slows a pendulum down? Its friction, learnt from the times at which it passes a light gate.

A gate at the lowest point records when the pendulum passes, and nothing else. The model
is theta'' = -rate sin(theta) - friction(theta'), friction being a small odd network; an event of
``fastnode.solve`` finds the passages, and their times have gradients by the implicit function
theorem, so that L-BFGS fits the model to the times. The truth is a drag that grows with
the square of the speed.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn

import fastnode

RELEASES = torch.tensor([0.4, 1.0, 1.8], dtype=torch.float64)
#: Of the noted times, in seconds.
NOISE = 1e-3
SPAN = torch.tensor([0.0, 10.0], dtype=torch.float64)


class Pendulum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(8.0, dtype=torch.float64))
        self.net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        with torch.no_grad():
            self.net[2].weight.mul_(0.1)  # nearly no friction to begin with

    def friction(self, speed: Tensor) -> Tensor:
        speed = speed.unsqueeze(1)
        return (self.net(speed) - self.net(-speed)).squeeze(1)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        angle, speed = y
        return torch.stack([speed, -self.rate * angle.sin() - self.friction(speed)])


class Truth(Pendulum):
    def __init__(self) -> None:
        super().__init__()
        self.rate.data.fill_(9.81)

    def friction(self, speed: Tensor) -> Tensor:
        return 0.08 * speed * speed.abs()


GATE = fastnode.Event(lambda t, y: y[0], terminal=False)


def passages(model: Pendulum) -> list[Tensor]:
    """The times at which pendulums released at several angles pass the gate, each one's own."""
    start = torch.stack([RELEASES, torch.zeros_like(RELEASES)])
    # Fixed steps: L-BFGS wants a smooth function, and steps that are chosen make small jumps.
    solution = fastnode.solve(model, start, SPAN, method="rk4", steps=250, events=GATE)
    (found,) = solution.events
    # All pendulums are one state: the one that passes is the one whose angle is zero.
    passing = found.states[:, 0].abs().argmin(1)
    return [found.times[passing == i] for i in range(len(RELEASES))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps only")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    with torch.no_grad():
        seen = passages(Truth())
    seen = [times + NOISE * torch.randn_like(times) for times in seen]
    print(f"{sum(map(len, seen))} passages of {len(seen)} releases, noted to a millisecond")

    model, start = Pendulum(), time.perf_counter()
    # The first passages first: a wrong rate confuses the later ones with their neighbours.
    for count in (4,) if quick else (4, 7, 20):
        optimizer = torch.optim.LBFGS(
            model.parameters(), max_iter=1 if quick else 30, line_search_fn="strong_wolfe"
        )

        def misfit(count: int = count, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = torch.zeros((), dtype=torch.float64)
            for found, times in zip(passages(model), seen, strict=True):
                known = min(count, len(found), len(times))
                loss = loss + ((found[:known] - times[:known]) / NOISE).square().mean()
            loss.backward()
            return loss

        optimizer.step(misfit)
        error = 1000 * NOISE * (misfit().item() / len(RELEASES)) ** 0.5
        print(f"first {count:2d} passages off by {error:6.2f} ms, rate {model.rate.item():.3f}")
    print(f"{time.perf_counter() - start:.1f} s; the true rate is {Truth().rate.item():.3f}")
    speeds = torch.tensor([0.5, 1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    with torch.no_grad():
        table = zip(speeds, model.friction(speeds), Truth().friction(speeds), strict=True)
    for speed, found, true in table:
        print(f"friction at speed {speed:.1f}: found {found:.3f}, true {true:.3f}")


if __name__ == "__main__":
    main()
