"""How far each adjoint errs where a flow contracts: python -m bench.contraction

dy/dt = -K^T relu(K y) with a convolution K loses information, so that its reverse solve cannot
recover it (arXiv 1902.10298, section 3). Distances are relative, gradients those of the sum of
squares of the end state by the image and by K, against backprop. Numbers vary in their last digits
between machines.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnode
from bench.machine import head
from bench.results_file import write

ENDS = (1.0, 5.0, 20.0, 40.0)
ADJOINTS = ("checkpoint", fastnode.Revolve(4), "reversible", "continuous")
ADAPTIVE = {"method": "dopri5", "rtol": 1e-6, "atol": 1e-6}
FEW_STEPS = {"method": "heun2", "steps": 5}
FEW_END = 12.0


class Contraction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -F.conv_transpose2d(torch.relu(self.conv(y)), self.conv.weight, padding=1)


def distance(found: Any, wanted: Any) -> float:
    pairs = zip(found, wanted, strict=True)
    return max(((a - b).norm() / b.norm()).item() for a, b in pairs)


def errors(block: nn.Module, image: Tensor, end: float, options: dict[str, Any]) -> dict[str, Any]:
    parameters = list(block.parameters())

    def gradient(adjoint: Any) -> tuple[Tensor, Any]:
        y0 = image.clone().requires_grad_()
        ts = torch.tensor([0.0, end])
        y1 = fastnode.solve(block, y0, ts, adjoint=adjoint, **options).ys[-1]
        return y1.detach(), torch.autograd.grad(y1.square().sum(), [y0, *parameters])

    y1, exact = gradient("backprop")
    with torch.no_grad():
        back = fastnode.solve(block, y1, torch.tensor([end, 0.0]), **options).ys[-1]
    found = {str(adjoint): distance(gradient(adjoint)[1], exact) for adjoint in ADJOINTS}
    return {"image from reverse solve": distance([back], [image]), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench/results/cpu/contraction.jsonl"))
    out = parser.parse_args().out
    torch.manual_seed(0)
    block, image = Contraction(), torch.rand(1, 4, 8, 8, dtype=torch.float64)
    rows: list[dict[str, Any]] = [
        {"end": end, "method": "dopri5", "dtype": "float64", **errors(block, image, end, ADAPTIVE)}
        for end in ENDS
    ]
    for dtype in (torch.float64, torch.float32):
        found = errors(block.to(dtype), image.to(dtype), FEW_END, FEW_STEPS)
        rows.append(
            {"end": FEW_END, "method": "heun2", "dtype": str(dtype).removeprefix("torch."), **found}
        )
    write(out, head(), rows)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
