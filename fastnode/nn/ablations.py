"""What simulation-free training is compared with: embeddings that are not learned with the flow.

Source: Kim, Yoo et al., NeurIPS 2024, arXiv 2410.22918, ablations.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnode.flow import flow_loss
from fastnode.nn.fields import check_positive
from fastnode.nn.node import check_module, full_precision
from fastnode.nn.simfree import LossParts, SimulationFreeNODE


class PadZeros(nn.Module):
    """Rows [B, ...] flattened and lengthened to [B, size] by zeros: no embedding is learned."""

    def __init__(self, size: int) -> None:
        super().__init__()
        check_positive(size=size)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1)
        return F.pad(rows, (0, self.size - rows.shape[1]))


class TakeFirst(nn.Module):
    """The first ``size`` of each row."""

    def __init__(self, size: int) -> None:
        super().__init__()
        check_positive(size=size)
        self.size = size

    def forward(self, z: Tensor) -> Tensor:
        return z[:, : self.size]


class AutoencodedNODE(SimulationFreeNODE):
    """Simulation-free, with encoders that are trained by autoencoding alone.

    Equivalent to ``SimulationFreeNODE`` with a detached z0 and z1 in the flow loss, and
    mean((data_decoder(encoder(x)) - x)^2) added to it, which trains the data encoder instead.

    Args:
        data_decoder: from the embedding to x, flattened.
        nets, settings: those of ``SimulationFreeNODE``.
    """

    def __init__(self, data_decoder: nn.Module, *nets: Any, **settings: Any) -> None:
        super().__init__(*nets, **settings)
        check_module(data_decoder=data_decoder)
        self.data_decoder = data_decoder

    def loss(self, x: Tensor, y: Tensor, generator: torch.Generator | None = None) -> LossParts:
        self._check_targets(x, y)
        z0 = full_precision(self.encoder(x))
        if not y.is_floating_point():
            y = F.one_hot(y.long(), self.num_classes or 0).to(z0.dtype)
        z1 = full_precision(self.label_encoder(y))
        ends = z0.detach(), z1.detach()
        t, zt, target = self.path.draw(*ends, self.zero_probability, generator=generator)
        flow = flow_loss(self.field(t, zt), target)
        noise = torch.randn(z1.shape, dtype=z1.dtype, device=z1.device, generator=generator)
        label = F.mse_loss(self.decoder(torch.add(z1, noise, alpha=self.label_noise)), y)
        data = F.mse_loss(self.data_decoder(z0), x.flatten(1))
        return LossParts(flow + label + data, flow, label + data)
