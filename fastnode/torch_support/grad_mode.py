"""What autograd records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def recorded(*groups: Sequence[Any]) -> bool:
    """Whether autograd wants to know how a result came from any of the tensors."""
    return torch.is_grad_enabled() and any(
        isinstance(x, Tensor) and x.requires_grad for group in groups for x in group
    )
