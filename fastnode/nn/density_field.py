"""The vector field of samples together with the logarithm of their density."""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Factor of the columns that no step may depend on. Their errors, and their part in the choice of
#: the first step, vanish beside the tolerances; as a power of two it loses no digit.
SMALL = 2.0**-40


class DensityField(nn.Module):
    """(dz/dt, d log p/dt) = (f, -tr(df/dz)) of samples z that move with dz/dt = f = field(t, z).

    The trace is exact, by D vector-Jacobian products, or Hutchinson's estimate e^T (df/dz) e, by
    one. The noise e is part of the state, with derivative 0: so each sample has its own, and the
    field stays a function of time and state alone, as solvers and ``compile_field`` need it.

    Args:
        field: a module called ``field(t, z)``, t a tensor without dimensions.
        estimated: whether the trace is Hutchinson's estimate.
        integrals: whether the integrands of RNODE are integrated as well.

    Shape:
        ``density_field(t, state)`` takes and returns [B, C], float32 or float64. The columns:

        - D of z;
        - one of the change of log p(z(t));
        - with ``integrals`` two of ``SMALL`` times the integrals of |f|^2 / (2 D) and of
          |df/dz|_F^2 / D, the latter with the trace's noise, |e^T df/dz|^2 / D, if ``estimated``;
        - if ``estimated`` D of ``SMALL`` times the noise e, which is constant.

    Raises:
        ValueError: field does not return the shape of z, or nothing that has a gradient.

    Source: Chen et al., NeurIPS 2018, arXiv 1806.07366, theorem 1; Grathwohl et al., ICLR 2019,
    arXiv 1810.01367, algorithm 1 (the estimate); Finlay et al., ICML 2020, arXiv 2002.02798 (the
    integrals).
    """

    def __init__(self, field: nn.Module, estimated: bool = False, integrals: bool = False) -> None:
        super().__init__()
        self.field, self.estimated, self.integrals = field, estimated, integrals

    def pack(self, z: Tensor, noise: Tensor | None) -> Tensor:
        """The state at the start, [B, C], of z [B, D] and, where estimated, noise [B, D]."""
        parts = [z, z.new_zeros(len(z), 3 if self.integrals else 1)]
        if noise is not None:
            parts.append(SMALL * noise)
        return torch.cat(parts, 1)

    def unpack(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """z [B, D], the change of log p [B] and the integrals [B, 2] of a state [B, C]."""
        d = self._dimension(state)
        z, change, rest = state.split_with_sizes([d, 1, state.shape[1] - d - 1], 1)
        return z, change.squeeze(1), rest[:, :2] / SMALL if self.integrals else None

    def scale(self, dim: int) -> float:
        """What multiplies tolerances so that the columns beside z and log p, which have no errors
        but count in the mean that the error norm takes, change no step."""
        counted = dim + 1
        others = (2 if self.integrals else 0) + (dim if self.estimated else 0)
        return (counted / (counted + others)) ** 0.5

    def forward(self, t: Tensor, state: Tensor) -> Tensor:
        if torch.is_inference_mode_enabled():
            # Its tensors know no gradients, of which the trace is made.
            with torch.inference_mode(False), torch.no_grad():
                return self(t.clone(), state.clone())
        recorded, d = torch.is_grad_enabled(), self._dimension(state)
        with torch.enable_grad():
            z = state[:, :d]
            z = z if z.requires_grad else z.detach().requires_grad_()
            f = self.field(t, z).to(state.dtype)
            if f.shape != z.shape:
                raise ValueError(
                    f"field must return the shape of z, {tuple(z.shape)}, got {tuple(f.shape)}"
                )
            if not f.requires_grad:
                # Its trace would be 0, silently.
                raise ValueError(
                    "field must return what autograd can differentiate by z; does it detach, or "
                    "run under torch.no_grad?"
                )
            if self.estimated:
                # Constant: a gradient of it would cost as much as the trace.
                noise = state[:, -d:].detach() / SMALL
                product = _product(f, z, noise, recorded)
                trace, square = (product * noise).sum(1), product.square().sum(1)
            else:
                trace = square = state.new_zeros(len(state))
                for i in range(d):
                    row = _product(f[:, i].sum(), z, None, recorded)
                    trace = trace + row[:, i]
                    if self.integrals:
                        square = square + row.square().sum(1)
        parts = [f, -trace.unsqueeze(1)]
        if self.integrals:
            energy = f.square().sum(1) / 2
            parts.append(SMALL / d * torch.stack([energy, square], 1))
        if self.estimated:
            parts.append(torch.zeros_like(z))
        return torch.cat(parts, 1)

    def _dimension(self, state: Tensor) -> int:
        own = state.shape[1] - (3 if self.integrals else 1)
        return own // 2 if self.estimated else own


def _product(f: Tensor, z: Tensor, v: Tensor | None, recorded: bool) -> Tensor:
    """v^T df/dz, 0 where f does not depend on z."""
    (found,) = torch.autograd.grad(
        f, z, v, create_graph=recorded, retain_graph=True, allow_unused=True
    )
    return torch.zeros_like(z) if found is None else found
