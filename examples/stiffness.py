"""Is my problem stiff? ``Solution.stats`` answers for Van der Pol's oscillator.

Where accuracy limits the step, the step shrinks as the tolerance does. Where stability limits it,
it does not: looser tolerances save nothing, and an explicit method creeps. ``steps.stiffness``
estimates h |lambda| over the size of the method's stability region for every step: near 1 says
stability. Then an implicit method takes far fewer evaluations.

The same holds for a trained neural ODE: docs/regularization.md shows how to train one that is not
stiff.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import fastnode


def van_der_pol(t: Tensor, y: Tensor, mu: Tensor) -> Tensor:
    return torch.stack([y[:, 1], mu * (1 - y[:, 0] ** 2) * y[:, 1] - y[:, 0]], dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="mildly stiff problems only")
    rates = [1.0, 10.0, 50.0] if parser.parse_args().quick else [1.0, 10.0, 100.0, 500.0]
    mu = torch.tensor(rates, dtype=torch.float64)
    y0 = torch.tensor([2.0, 0.0], dtype=torch.float64).expand(len(mu), 2)
    ts = torch.tensor([0.0, 20.0], dtype=torch.float64)

    solution = fastnode.solve(van_der_pol, y0, ts, args=(mu,), per_sample=True)
    print(f"tsit5, one row for each mu of {rates}:\n{solution.stats}\n")

    print("share of steps that stability limits (stiffness above 0.5), and what it means:")
    for rate, steps in zip(rates, solution.steps, strict=True):
        share = (steps.stiffness > 0.5).double().mean().item()
        print(
            f"  mu = {rate:5.0f}: {100 * share:3.0f} %  {'stiff' if share > 0.5 else 'not stiff'}"
        )

    print("\nevaluations at a tolerance of 1e-3 and of 1e-6 (a stiff problem hardly notices):")
    for rate in rates:
        counts = []
        for rtol in (1e-3, 1e-6):
            alone = fastnode.solve(
                van_der_pol, y0[:1], ts, args=(torch.tensor([rate]).double(),), rtol=rtol
            )
            counts.append(alone.nfe)
        print(f"  mu = {rate:5.0f}: {counts[0]:6d} {counts[1]:6d}")

    stiff = mu[-1:]
    implicit = fastnode.solve(van_der_pol, y0[:1], ts, args=(stiff,), method="trbdf2", steps=40)
    distance = (implicit.ys[-1] - solution.ys[-1, -1:]).abs().max()
    print(
        f"\ntrbdf2 at mu = {rates[-1]:.0f}: 40 steps, {implicit.nfe} evaluations against "
        f"{solution.nfe[-1]}; the two differ by {distance:.0e}"
    )


if __name__ == "__main__":
    main()
