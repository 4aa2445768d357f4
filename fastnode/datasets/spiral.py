"""The spiral from which neural ODEs are learned as a first exercise.

Source: Chen et al., NeurIPS 2018, arXiv 1806.07366; the cubic field is that of torchdiffeq's demo.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Times 0 to 1, equally spaced.
TIMES = 25
_SUBSTEPS = 20


def trajectories(count: int) -> Tensor:
    """Solutions of dy/dt = A y^3 from random points of the ring 1 <= |y| <= 2, [count, 25, 2]."""
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator, "dtype": torch.float64}
    angle, radius = 2 * math.pi * torch.rand(count, **options), 1 + torch.rand(count, **options)
    y = radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    found = [y]
    for _ in range(TIMES - 1):
        for _ in range(_SUBSTEPS):
            y = _rk4(y, 1 / (_SUBSTEPS * (TIMES - 1)))
        found.append(y)
    return torch.stack(found, dim=1).float()


def _field(y: Tensor) -> Tensor:
    return y**3 @ y.new_tensor([[-0.1, -2.0], [2.0, -0.1]])


def _rk4(y: Tensor, h: float) -> Tensor:
    k1 = _field(y)
    k2 = _field(y + h / 2 * k1)
    k3 = _field(y + h / 2 * k2)
    k4 = _field(y + h * k3)
    return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
