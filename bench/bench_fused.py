"""Whole solves of perceptrons in one call: against torchdiffeq and diffrax, forward and backward.

Ours is an ordinary module that ``fastnode.fuse`` has read, called through ``fastnode.odeint`` and
``backward()``; torchdiffeq solves the same module, diffrax (optional: ``pip install diffrax``) the
same weights, jitted and warm. Each result is compared with the others before it is timed.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torchdiffeq
from bench_odeint import ACTIVATIONS, TIMES, TOLERANCE, Field, evaluations, initial, solver
from ratio import compare

import fastnode
from fastnode import extension

SIZES = [(2, 16, 1), (2, 64, 32), (16, 64, 128), (64, 128, 128), (64, 128, 1024), (512, 512, 1024)]
pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)


@pytest.fixture(params=[2, 1], ids=lambda n: f"{n} threads")
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def with_diffrax(field: Field, y0: torch.Tensor, gradient: bool):
    import diffrax
    import jax
    import jax.numpy as jnp

    weights = [
        tuple(jnp.asarray(p.detach().numpy()) for p in (layer.weight, layer.bias))
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
            max_steps=64,
        ).ys[-1]

    state = jnp.asarray(y0.numpy())
    run = jax.jit(jax.grad(lambda y, args: solve(y, args).sum(), (0, 1)) if gradient else solve)
    return lambda: jax.block_until_ready(run(state, weights))


def trained(field: torch.nn.Module, solve, y0: torch.Tensor):
    """Function that makes all gradients of the sum of a solution, and returns that of y0."""
    y = y0.clone().requires_grad_()

    def run():
        y.grad = None
        field.zero_grad()
        solve(y).sum().backward()
        return y.grad

    return run


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("part", ["forward", "forward + backward"])
def test_fused(benchmark, threads, part, size, activation):
    state, hidden, batch = size
    field, y0 = Field(state, hidden, activation), initial(state, batch)
    fused = fastnode.fuse(field)
    arguments = {"method": "dopri5", **TOLERANCE}
    gradient = part != "forward"

    def ours(y):
        return fastnode.odeint(fused, y, TIMES, **arguments)[-1]

    def theirs(y):
        return torchdiffeq.odeint(field, y, TIMES, **arguments)[-1]

    if gradient:
        own, other = trained(field, ours, y0), trained(field, theirs, y0)
    else:
        own, other = (torch.no_grad()(lambda f=f: f(y0)) for f in (ours, theirs))
    torch.testing.assert_close(own(), other(), rtol=1e-3, atol=1e-3)
    references = {"torchdiffeq": other}
    if importlib.util.find_spec("diffrax") is not None:
        references["diffrax, jitted"] = run = with_diffrax(field, y0, gradient)
        found = run()[0] if gradient else run()
        torch.testing.assert_close(torch.tensor(found.tolist()), other(), rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        solution = fastnode.solve(fused, y0, TIMES, engine="fused", **arguments)
        nfe = evaluations(field, solver(torchdiffeq, y0, TIMES))
    compare(
        benchmark,
        f"{part} {activation}, {threads} threads",
        str(size),
        own,
        references,
        rounds=4 if state > 100 else 8,
        evaluations={"fastnode": solution.nfe, "torchdiffeq": nfe},
    )
