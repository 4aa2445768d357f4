"""Whether autograd records an operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def recorded(*groups: Sequence[Any]) -> bool:
    """Whether autograd records what is computed from these: grad mode is on and any of the tensors
    requires a gradient."""
    return torch.is_grad_enabled() and any(
        isinstance(x, Tensor) and x.requires_grad for group in groups for x in group
    )
