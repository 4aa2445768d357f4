"""Latent ODEs: a recurrent net encodes a series, and an ODE of hidden states continues it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastnode.nn.fields import check_positive
from fastnode.nn.node import EncodedODE, full_precision


class GRUEncoder(nn.Module):
    """From a series to a state at its first time, a sample of a normal distribution.

    A GRU reads values and mask backwards in time; from its last state come mean and logarithm of
    the variance. In evaluation mode the mean is returned.

    Args:
        variables: D; latent: size of the state; hidden: size of the GRU's state.

    Shape:
        x [B, T, 2, D], values and 1 where they were observed, to [B, latent].

    Attributes:
        divergence: Kullback-Leibler divergence from N(0, I), the mean over batch and latent
            dimensions, of the last call; a scalar with its gradient.
        generator: source of the noise; torch's default one if None.

    Source: Chen et al., NeurIPS 2018, arXiv 1806.07366, section 5; Rubanova, Chen, Duvenaud,
    NeurIPS 2019, arXiv 1907.03907.
    """

    def __init__(self, variables: int, latent: int, hidden: int) -> None:
        super().__init__()
        check_positive(variables=variables, latent=latent, hidden=hidden)
        self.gru = nn.GRU(2 * variables, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 2 * latent)
        self.generator: torch.Generator | None = None
        self.divergence = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[2] != 2:
            raise ValueError(f"x must be of shape [B, T, 2, D], got {tuple(x.shape)}")
        _, last = self.gru(x.flatten(2).flip(1))
        mean, log_variance = self.head(last[0]).chunk(2, dim=1)
        self.divergence = (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2
        if not self.training:
            return mean
        options = {"dtype": mean.dtype, "device": mean.device, "generator": self.generator}
        noise = torch.randn(mean.shape, **options)
        return mean + noise * (log_variance / 2).exp()

    def __getstate__(self) -> dict[str, Any]:
        # A generator cannot be copied, nor the autograd graph of the divergence.
        return {**self.__dict__, "divergence": self.divergence.detach(), "generator": None}


class OwnTimesODE(EncodedODE):
    """A latent ODE that solves each series at its own times, with per-sample stepping.

    Args: those of ``EncodedODE`` with ``times``, all the times at which series may be observed.

    Shape:
        x [B, T, 2, D] as for ``GRUEncoder`` to values [B, T, D]; where a series has no observation
        they may be 0 instead of a prediction.

    Attributes:
        nfe: the mean over the samples, rounded.
    """

    def forward(
        self,
        x: Tensor,
        method: str | None = None,
        steps: int | None = None,
        rtol: float | None = None,
        atol: float | None = None,
    ) -> Tensor:
        z0, times = full_precision(self.encoder(x)), self.times
        assert times is not None
        seen = x[:, :, 1].amax(dim=2) > 0
        # Every solve begins at the first time. Rows with fewer times than others are filled up with
        # times that they do not need: that is cheap, and all rows stay increasing.
        seen[:, 0] = True
        count = max(2, int(seen.sum(dim=1).max()))
        own = (~seen).to(torch.uint8).argsort(dim=1, stable=True)[:, :count].sort(dim=1).values
        solution = self._solve_regularized(
            z0,
            times.to(own.device)[own],
            method=self.method if method is None else method,
            rtol=self.rtol if rtol is None else rtol,
            atol=self.atol if atol is None else atol,
            per_sample=True,
        )
        decoded = self.decoder(solution.transpose(0, 1))
        place = own[:, :, None].expand_as(decoded)
        return decoded.new_zeros(*x.shape[:2], decoded.shape[2]).scatter(1, place, decoded)
