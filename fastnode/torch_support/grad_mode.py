"""Whether an operation is differentiated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_gradtrackingtensor
from torch.autograd import forward_ad


def recorded(*groups: Sequence[Any]) -> bool:
    """Whether autograd records what is computed from these: grad mode is on and any of the tensors
    requires a gradient."""
    return torch.is_grad_enabled() and any(
        isinstance(x, Tensor) and x.requires_grad for group in groups for x in group
    )


def followed(x: Tensor) -> bool:
    """Whether derivatives with respect to x are wanted: autograd records what is computed from it,
    or forward-mode differentiation (``torch.func.jvp``, ``jacfwd``) carries a tangent along."""
    if x.requires_grad and torch.is_grad_enabled():
        return True
    if forward_ad._current_level < 0:
        return False
    # The tangent may be that of an outer one of several transforms.
    return is_gradtrackingtensor(x) or forward_ad.unpack_dual(x).tangent is not None
