"""Batches and random numbers as functions of the seed and the step alone.

No generator state is carried from step to step, so a run that was killed continues with the numbers
that it would have drawn, and every process computes the batch by itself.
"""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = 4


def derive_seed(seed: int, purpose: str, index: int, rank: int = 0) -> int:
    """A seed of 64 bits that is well mixed, whichever of the arguments changes."""
    text = f"{seed}/{purpose}/{index}/{rank}".encode()
    # manual_seed takes the range of int64.
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


class Batches:
    """Batch number `step`: a slice of the concatenation of all shuffled epochs.

    Batches always have `batch` rows; one that begins near the end of an epoch ends in the next.
    With `processes` of them, this one (`rank`) gets every `processes`-th row of the batch.
    """

    def __init__(self, size: int, batch: int, seed: int, rank: int, processes: int) -> None:
        self.size, self.batch, self.seed = size, batch, seed
        self.rank, self.processes = rank, processes
        self._epochs: dict[int, Tensor] = {}

    def indices(self, step: int) -> Tensor:
        """Row numbers of this process in the batch of `step`: int64 [batch / processes]."""
        parts, begin, end = [], step * self.batch, (step + 1) * self.batch
        while begin < end:
            epoch, offset = divmod(begin, self.size)
            part = self._epoch(epoch)[offset : offset + end - begin]
            parts.append(part)
            begin += len(part)
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole[self.rank :: self.processes]

    def _epoch(self, epoch: int) -> Tensor:
        if epoch not in self._epochs:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "epoch", epoch))
            self._epochs = {epoch: torch.randperm(self.size, generator=generator)}
        return self._epochs[epoch]


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random crops of images [B, C, H, W] padded by 4 zeros, then a flip of one half of them."""
    batch, _, height, width = images.shape
    padded = F.pad(images, (PADDING,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    options = {"generator": generator, "device": images.device}
    down = torch.randint(2 * PADDING + 1, (batch,), **options)
    right = torch.randint(2 * PADDING + 1, (batch,), **options)
    flip = torch.rand(batch, **options) < 0.5
    crops = windows[torch.arange(batch, device=images.device), :, down, right]
    return torch.where(flip[:, None, None, None], crops.flip(3), crops)
