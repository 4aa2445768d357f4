"""Compiled fields against the same modules on the native engine, in torchdiffeq and in diffrax."""

from __future__ import annotations

import os
from itertools import product

import jax_fields
import pytest
import torch
import torch.nn.functional as F
import torchdiffeq
from ratio import compare
from rivals import absent, by_diffrax
from torch import nn

import fastnode
from fastnode import extension

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)

TIMES = torch.tensor([0.0, 1.0])
SOLVER = {"rtol": 1e-5, "atol": 1e-5, "method": "dopri5"}


class Mlp(nn.Module):
    shape = (64,)

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, t, y):
        return self.b(torch.tanh(self.a(y)))


class Residual(nn.Module):
    shape = (64,)

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(64) for _ in range(3))
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        self.out = nn.Linear(64, 64)

    def forward(self, t, y):
        for norm, layer in zip(self.norms, self.layers, strict=True):
            y = y + layer(F.silu(norm(y)))
        return self.out(y)


class ConcatSquash(nn.Module):
    """The layer of FFJORD (arXiv 1810.01367)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)
        self.gate, self.shift = nn.Linear(1, outputs), nn.Linear(1, outputs, bias=False)

    def forward(self, t, x):
        t = t.reshape(1, 1)
        return self.layer(x) * torch.sigmoid(self.gate(t)) + self.shift(t)


class Flow(nn.Module):
    """A continuous normalising flow with the exact trace by autograd."""

    shape = (3,)

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(ConcatSquash(*s) for s in ((2, 64), (64, 64), (64, 2)))

    def forward(self, t, y):
        with torch.enable_grad():
            x = y[:, :2] if y.requires_grad else y[:, :2].detach().requires_grad_()
            f, trace = x, 0
            for i, layer in enumerate(self.layers):
                f = layer(t, torch.tanh(f) if i else f)
            for i in range(2):
                (row,) = torch.autograd.grad(f[:, i].sum(), x, create_graph=True)
                trace = trace + row[:, i]
        return torch.cat([f, -trace[:, None]], 1)


class Convolutions(nn.Module):
    shape = (16, 8, 8)

    def __init__(self):
        super().__init__()
        self.n1, self.n2 = nn.GroupNorm(4, 16), nn.GroupNorm(4, 16)
        self.c1, self.c2 = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))

    def forward(self, t, y):
        return self.c2(F.relu(self.n2(self.c1(F.relu(self.n1(y))))))


class GruOde(nn.Module):
    """Of arXiv 1905.12374."""

    shape = (32,)

    def __init__(self):
        super().__init__()
        self.r, self.z, self.u = (nn.Linear(32, 32) for _ in range(3))

    def forward(self, t, h):
        r, z = torch.sigmoid(self.r(h)), torch.sigmoid(self.z(h))
        return (1 - z) * (torch.tanh(self.u(r * h)) - h)


class Attention(nn.Module):
    """Attention and mixing by an adjacency between eight nodes."""

    shape = (8, 16)

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 16, bias=False) for _ in range(3))
        self.o, self.m = nn.Linear(16, 16), nn.Linear(16, 16)
        adjacency = (torch.rand(8, 8) < 0.4).float() + torch.eye(8)
        self.register_buffer("adjacency", adjacency / adjacency.sum(1, keepdim=True))

    def forward(self, t, h):
        weights = torch.softmax(self.q(h) @ self.k(h).transpose(-1, -2) / 4, -1)
        return torch.tanh(self.o(weights @ self.v(h)) + self.m(self.adjacency @ h))


#: Name, and what scales its weights so that a solve takes 5 to 15 steps.
FIELDS = {
    "mlp": (Mlp, 1.5),
    "residual": (Residual, 1.3),
    "flow": (Flow, 2.0),
    "convolutions": (Convolutions, 1.0),
    "gru": (GruOde, 6.0),
    "attention": (Attention, 1.5),
}
BATCHES = (1, 32, 128, 1024)
CASES = [(name, b) for name in FIELDS for b in BATCHES if (name, b) != ("convolutions", 1024)]


def scaled(name, batch):
    """The field, and a state."""
    make, scale = FIELDS[name]
    torch.manual_seed(1)
    field = make()
    with torch.no_grad():
        for x in field.parameters():
            if x.dim() >= 2:
                x.mul_(scale)
    return field, torch.randn(batch, *make.shape)


def with_diffrax(name, field, y0, gradient):
    """Its solve, on one thread, and the number of evaluations of the value."""
    import jax

    # XLA has as many threads as cores when it begins.
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    jax.devices()
    os.sched_setaffinity(0, cores)
    evaluations = []
    function, weights = jax_fields.FIELDS[name], jax_fields.weights(field)
    by_diffrax(function, weights, y0, count=lambda: evaluations.append(1))()
    solve = by_diffrax(function, weights, y0, gradient=gradient, max_steps=64)
    return solve, len(evaluations)


def solved_with(solver, func, y0, gradient, parameters, **options):
    """Function that solves and returns the end, with gradients of the state and the parameters."""

    def end(y):
        found = solver(func, y, TIMES, **SOLVER, **options)
        return getattr(found, "ys", found)[-1]

    def solve():
        if not gradient:
            with torch.no_grad():
                return [end(y0)]
        y = y0.clone().requires_grad_()
        y1 = end(y)
        found = torch.autograd.grad(y1.sum(), [y, *parameters], allow_unused=True)
        return [y1.detach(), *(x for x in found if x is not None)]

    return solve


def difference(a, b):
    return float((a - b).norm() / (b.norm() + 1e-6))


@pytest.mark.parametrize("part", ["forward", "forward + backward"])
@pytest.mark.parametrize(
    ("threads", "case"),
    [*product([1], CASES), *product([2], [case for case in CASES if case[1] >= 128])],
    indirect=["threads"],
    ids=lambda x: f"{x[0]}-{x[1]}" if isinstance(x, tuple) else f"{x} threads",
)
def test_compiled_fields(benchmark, threads, case, part):
    name, batch = case
    field, y0 = scaled(name, batch)
    compiled = fastnode.compile_field(field, y0)
    gradient = part != "forward"
    parameters = list(field.parameters())
    ours = solved_with(fastnode.odeint, compiled, y0, gradient, parameters)
    references = {
        "native": solved_with(fastnode.odeint, field, y0, gradient, parameters),
        "torchdiffeq": solved_with(torchdiffeq.odeint, field, y0, gradient, parameters),
    }
    if gradient:
        references["native, checkpoint"] = solved_with(
            fastnode.solve, field, y0, True, parameters, adjoint="checkpoint"
        )
    if name == "mlp":
        fused = fastnode.fuse(field)
        references["fuse"] = solved_with(fastnode.odeint, fused, y0, gradient, parameters)
    found, distance = ours(), {}
    for reference, solve in references.items():
        pairs = zip(found, solve(), strict=True)
        distance[reference] = max(difference(a, b) for a, b in pairs)
    evaluations: dict[str, int] = {}
    with torch.no_grad():
        for engine, func in (("fused", compiled), ("native", field)):
            solution = fastnode.solve(func, y0, TIMES, engine=engine, **SOLVER)
            evaluations[engine] = int(solution.nfe)
    if not absent("diffrax") and threads == 1:
        solve, evaluations["diffrax"] = with_diffrax(name, field, y0, gradient)
        references["diffrax"] = solve
        # Its steps are its own, and so are its errors.
        theirs = torch.tensor((solve()[0] if gradient else solve()).tolist())
        distance["diffrax"] = difference(found[1] if gradient else found[0], theirs)
    # Where the signs of ReLU's arguments differ so do gradients.
    kinks = gradient and name == "convolutions"
    assert max(distance.values()) < (5e-2 if kinks else 2e-3)
    suffix = "" if threads == 1 else f", {threads} threads"
    compare(
        benchmark,
        f"compiled field, {part}{suffix}",
        f"{name}, {batch}",
        ours,
        references,
        rounds=5,
        distance_to_reference=distance,
        evaluations=evaluations,
    )
