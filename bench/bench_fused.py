"""Whole solves of MLPs in one call: against torchdiffeq and diffrax, forward and backward.

Ours is an ordinary module that ``fastnode.fuse`` has read, called through ``fastnode.odeint`` and
``backward()``; torchdiffeq solves the same module, diffrax (optional: ``pip install diffrax``) the
same weights, jitted and warm. Each result is compared with the others before it is timed.
"""

from __future__ import annotations

from itertools import product

import fma_peak
import pytest
import torch
import torchdiffeq
from bench_odeint import TIMES, TOLERANCE, Field, evaluations, initial, solver
from fused_bound import least_microseconds
from ratio import compare
from rivals import absent, with_diffrax

import fastnode
from fastnode import extension
from fastnode.engines import select
from fastnode.engines.fused import joint as fused
from fastnode.engines.fused.mlp import ACTIVATIONS
from fastnode.engines.methods import odeint_request
from fastnode.nn import MLPField
from fastnode.problem.ivp import make_problem

SIZES = [(2, 16, 1), (2, 64, 32), (16, 64, 128), (64, 128, 128), (64, 128, 1024), (512, 512, 1024)]
PARTS = ["forward", "forward + backward"]
pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)


@pytest.fixture(autouse=True)
def with_gradients():
    """Whatever the test before has set."""
    with torch.set_grad_enabled(True):
        yield


def trained(field: torch.nn.Module, solve, y0: torch.Tensor):
    """Function that makes all gradients of the sum of a solution, and returns that of y0."""
    y = y0.clone().requires_grad_()
    leaves = [y, *field.parameters()]

    def run():
        # zero_grad would look for them again, and count as a part of the smallest solves.
        for leaf in leaves:
            leaf.grad = None
        solve(y).sum().backward()
        return y.grad

    return run


def products(size: tuple[int, int, int], nfe: int, gradient: bool):
    """Function that does the matrix products of ``nfe`` evaluations of a field by torch and nothing
    else; with gradients those back to the inputs and to the weights as well, once each. No solver
    that leaves them to torch is faster."""
    state, hidden, batch = size
    x, w1 = torch.randn(batch, state), torch.randn(hidden, state)
    z, w2 = torch.randn(batch, hidden), torch.randn(state, hidden)
    pairs = [(x, w1.t()), (z, w2.t())]
    if gradient:
        pairs += [(x, w2), (x.t(), z), (z, w1), (z.t(), x)]
    calls = [(a, b, a @ b) for a, b in pairs]

    def run():
        for _ in range(nfe):
            for a, b, out in calls:
                torch.mm(a, b, out=out)

    return run


@pytest.mark.parametrize(
    ("threads", "part", "activation", "size"),
    [
        *product([2], PARTS, ["tanh"], SIZES),
        *product([2], PARTS, ["silu"], [SIZES[1], SIZES[3]]),
        *(
            pytest.param(*case, marks=pytest.mark.full)
            for case in (
                *product([2], PARTS, ["silu"], [SIZES[0], SIZES[2], *SIZES[4:]]),
                *product([1], PARTS, ["tanh"], SIZES),
            )
        ),
    ],
    indirect=["threads"],
    ids=str,
)
def test_fused(benchmark, threads, part, activation, size):
    state, hidden, batch = size
    field, y0 = Field(state, hidden, activation), initial(state, batch)
    fused_field = fastnode.fuse(field)
    arguments = {"method": "dopri5", **TOLERANCE}
    gradient = part != "forward"

    def ours(y):
        return fastnode.odeint(fused_field, y, TIMES, **arguments)[-1]

    def theirs(y):
        return torchdiffeq.odeint(field, y, TIMES, **arguments)[-1]

    if gradient:
        own, other = trained(field, ours, y0), trained(field, theirs, y0)
    else:
        own, other = (lambda f=f: f(y0) for f in (ours, theirs))
    # Around all calls: within each of them it would count as a part of the smallest solves.
    torch.set_grad_enabled(gradient)
    torch.testing.assert_close(own(), other(), rtol=1e-3, atol=1e-3)
    references = {"torchdiffeq": other}
    # XLA keeps the threads with which it began.
    if not absent("diffrax") and threads > 1:
        run = with_diffrax(field, y0, gradient=gradient, max_steps=64)
        references["diffrax, jitted"] = run
        found = run()[0] if gradient else run()
        torch.testing.assert_close(torch.tensor(found.tolist()), other(), rtol=1e-3, atol=1e-3)
    if gradient and batch == 1:
        # What autograd takes for one layer: no solve in fewer calls than that is faster.
        layer = torch.nn.Linear(state, hidden)
        references["one layer of torch, without a solve"] = trained(layer, layer, y0)
    solution = fastnode.solve(fused_field, y0, TIMES, engine="fused", **arguments)
    nfe = evaluations(field, solver(torchdiffeq, y0, TIMES))
    if activation == "tanh":
        references["its products alone, by torch"] = products(size, solution.nfe, gradient)
    compare(
        benchmark,
        f"{part} {activation}, {threads} threads",
        str(size),
        own,
        references,
        rounds=3 if state > 100 else 10,
        warm=1 if state > 100 else 3,
        evaluations={"fastnode": solution.nfe, "torchdiffeq": nfe},
        least_microseconds=least_microseconds(size, activation, solution.nfe, threads, gradient),
    )
    peak = fma_peak.measure(threads)
    if not gradient and peak is not None:
        operations = 4 * state * hidden * batch * solution.nfe
        own_seconds = 1e-6 * benchmark.extra_info["microseconds"]
        benchmark.extra_info["share_of_fma_peak"] = operations / own_seconds / peak


@torch.no_grad()
@pytest.mark.parametrize("face", ["odeint", "solve"])
@pytest.mark.parametrize("size", SIZES[:5], ids=str)
def test_fixed_steps(benchmark, size, face):
    state, hidden, batch = size
    field, y0 = Field(state, hidden), initial(state, batch)
    fused_field, fixed = fastnode.fuse(field), {"method": "rk4", "options": {"step_size": 0.1}}

    def ours():
        if face == "odeint":
            return fastnode.odeint(fused_field, y0, TIMES, **fixed)[-1]
        return fastnode.solve(fused_field, y0, TIMES, method="rk4", step_size=0.1).ys[-1]

    def native():
        return fastnode.odeint(field, y0, TIMES, **fixed)[-1]

    def theirs():
        return torchdiffeq.odeint(field, y0, TIMES, **fixed)[-1]

    torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-5)
    references = {"torchdiffeq": theirs, "native engine": native}
    compare(benchmark, f"rk4 by {face}, ten steps", str(size), ours, references, rounds=6)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("threads", [2], indirect=True)
def test_activations(benchmark, threads, activation, part):
    state, hidden, batch = SIZES[2]
    torch.manual_seed(0)
    field, y0 = MLPField(state, hidden, 2, activation, "none"), initial(state, batch)
    arguments = {"method": "dopri5", **TOLERANCE}

    def ours(y):
        return fastnode.odeint(field, y, TIMES, engine="fused", **arguments)[-1]

    def theirs(y):
        return torchdiffeq.odeint(field, y, TIMES, **arguments)[-1]

    gradient = part != "forward"
    if gradient:
        own, other = trained(field, ours, y0), trained(field, theirs, y0)
    else:
        own, other = (lambda f=f: f(y0) for f in (ours, theirs))
    torch.set_grad_enabled(gradient)
    # torchdiffeq's last step goes beyond the end and is interpolated, ours stops there. Where the
    # derivative of the activation jumps, the gradients of two such solutions are further apart.
    loose = gradient and activation in ("elu", "relu")
    tolerance = 0.05 if loose else 1e-3
    torch.testing.assert_close(own(), other(), rtol=tolerance, atol=tolerance)
    subject = f"{part} {SIZES[2]}, {threads} threads"
    compare(benchmark, subject, activation, own, {"torchdiffeq": other}, rounds=6)


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES[:2], ids=str)
def test_op_alone(benchmark, size):
    """Without the checks and the reading of the field that odeint does for each call."""
    state, hidden, batch = size
    module, y0 = Field(state, hidden), initial(state, batch)
    field = fastnode.fuse(module)
    problem = make_problem(field, y0, TIMES)
    request = odeint_request("dopri5", TOLERANCE["rtol"], TOLERANCE["atol"], None)
    assert select.choose(problem, request) == "fused"

    def own():
        return fused.integrate(problem, request)

    def other():
        return torchdiffeq.odeint(module, y0, TIMES, method="dopri5", **TOLERANCE)

    torch.testing.assert_close(own(), other(), rtol=1e-3, atol=1e-3)
    compare(
        benchmark, "the op alone, forward tanh", str(size), own, {"torchdiffeq": other}, rounds=10
    )
