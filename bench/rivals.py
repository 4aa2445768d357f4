"""Other libraries' solves of a two-layer module over [0, 1] by dopri5 at 1e-5, each called warm.

All are optional. torchode is compiled the way its authors recommend, diffrax is jitted with the
same weights, torchdyn is called as it is: ``pip install torchode diffrax`` and, as torchdyn asks
for much that its solvers do not need, ``pip install --no-deps torchdyn torchcde torchsde trampoline
attrs`` beside scipy.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

TOLERANCE = 1e-5
#: Called at each evaluation of the field.
Count = Callable[[], None] | None


def absent(module: str) -> str | None:
    """Why a library cannot take part; None if it can."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        return str(error)
    return None


def with_torchode(field: Any, y0: torch.Tensor, *, count: Count = None) -> Callable[[], Any]:
    """Function that solves and returns the end; compiled, unless evaluations are counted."""
    import torchode

    term = torchode.ODETerm(_counted(field, count))
    controller = torchode.IntegralController(TOLERANCE, TOLERANCE, term=term)
    solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term), controller)
    times = torch.tensor([0.0, 1.0]).to(y0).expand(len(y0), -1).contiguous()
    problem = torchode.InitialValueProblem(y0=y0, t_eval=times)
    solve = solver.solve
    if count is None:
        torch._dynamo.reset()
        solve = torch.compile(solve)
    return lambda: solve(problem).ys[:, -1]


def with_torchdyn(field: Any, y0: torch.Tensor, *, count: Count = None) -> Callable[[], Any]:
    """Function that solves and returns the end."""
    from torchdyn.numerics import odeint

    f, times = _counted(field, count), torch.tensor([0.0, 1.0]).to(y0)
    options = {"solver": "dopri5", "rtol": TOLERANCE, "atol": TOLERANCE}
    return lambda: odeint(f, y0, times, **options)[1][-1]


def _counted(field: Any, count: Count) -> Any:
    def call(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if count is not None:
            count()
        return field(t, y)

    return call


def with_diffrax(
    field: Any,
    y0: torch.Tensor,
    *,
    gradient: bool = False,
    max_steps: int = 4096,
    count: Count = None,
) -> Callable[[], Any]:
    """Function that solves and returns the end, or with ``gradient`` the gradients of its sum: of
    y0, and of the weights. Differentiating costs by ``max_steps``."""
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

    return by_diffrax(f, weights, y0, gradient=gradient, max_steps=max_steps, count=count)


def by_diffrax(
    f: Callable[..., Any],
    weights: Any,
    y0: torch.Tensor,
    *,
    gradient: bool = False,
    max_steps: int = 4096,
    count: Count = None,
) -> Callable[[], Any]:
    """The same for a field ``f(t, y, weights)`` in JAX."""
    import diffrax
    import jax
    import jax.numpy as jnp

    def field(t, y, args):
        if count is not None:
            jax.debug.callback(count)
        return f(t, y, args)

    def solve(y, args):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Dopri5(),
            t0=0.0,
            t1=1.0,
            dt0=None,
            y0=y,
            args=args,
            stepsize_controller=diffrax.PIDController(rtol=TOLERANCE, atol=TOLERANCE),
            max_steps=max_steps,
        ).ys[-1]

    state = jnp.asarray(y0.cpu().numpy())
    run = jax.jit(jax.grad(lambda y, args: solve(y, args).sum(), (0, 1)) if gradient else solve)
    return lambda: jax.block_until_ready(run(state, weights))


#: How each is named in tables: the module that it needs, and its solve.
RIVALS = {
    "torchode, compiled": ("torchode", with_torchode),
    "torchdyn": ("torchdyn.numerics", with_torchdyn),
    "diffrax, compiled": ("diffrax", with_diffrax),
}
