"""diffrax (optional: ``pip install diffrax``), jitted, on the weights of a two-layer module."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

AVAILABLE = importlib.util.find_spec("diffrax") is not None


def with_diffrax(
    field: Any, y0: torch.Tensor, *, gradient: bool = False, max_steps: int = 4096
) -> Callable[[], Any]:
    """Function that solves over [0, 1] by dopri5 at 1e-5 and returns the end, or with ``gradient``
    the gradients of its sum: of y0, and of the weights. Differentiating costs by ``max_steps``."""
    import diffrax
    import jax
    import jax.numpy as jnp

    weights = [
        tuple(jnp.asarray(p.detach().cpu().numpy()) for p in (layer.weight, layer.bias))
        for layer in (field.net[0], field.net[2])
    ]
    activation = jnp.tanh if isinstance(field.net[1], torch.nn.Tanh) else jax.nn.silu

    def f(t, y, args):
        (a, b), (c, d) = args
        return activation(y @ a.T + b) @ c.T + d

    def solve(y, args):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(f),
            diffrax.Dopri5(),
            t0=0.0,
            t1=1.0,
            dt0=None,
            y0=y,
            args=args,
            stepsize_controller=diffrax.PIDController(rtol=1e-5, atol=1e-5),
            max_steps=max_steps,
        ).ys[-1]

    state = jnp.asarray(y0.cpu().numpy())
    run = jax.jit(jax.grad(lambda y, args: solve(y, args).sum(), (0, 1)) if gradient else solve)
    return lambda: jax.block_until_ready(run(state, weights))
