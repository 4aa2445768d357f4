"""The Lorenz system as a Triton device function and in PyTorch."""

import torch
import triton
import triton.language as tl  # noqa: F401 (the interpreter looks for it)


@triton.jit
def lorenz(t, x, y, z, rho):
    return 10.0 * (y - x), rho * x - y - x * z, x * y - 2.666 * z


def lorenz_in_torch(t, state, rho):
    x, y, z = state.unbind(1)
    return torch.stack([10.0 * (y - x), rho * x - y - x * z, x * y - 2.666 * z], dim=1)
