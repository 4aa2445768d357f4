"""Compiled fields against the same modules on the native engine and in torchdiffeq."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchdiffeq
from ratio import compare
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


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("part", ["forward", "forward + backward"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_compiled_fields(benchmark, one_thread, case, part):
    name, batch = case
    make, scale = FIELDS[name]
    torch.manual_seed(1)
    field = make()
    with torch.no_grad():
        for x in field.parameters():
            if x.dim() >= 2:
                x.mul_(scale)
    y0 = torch.randn(batch, *make.shape)
    compiled = fastnode.compile_field(field, y0)
    parameters = list(field.parameters())
    evaluations: dict[str, int] = {}

    def call(solver, func):
        def solve():
            if part == "forward":
                with torch.no_grad():
                    return [solver(func, y0, TIMES, **SOLVER)[-1]]
            y = y0.clone().requires_grad_()
            y1 = solver(func, y, TIMES, **SOLVER)[-1]
            found = torch.autograd.grad(y1.sum(), [y, *parameters], allow_unused=True)
            return [y1.detach(), *(x for x in found if x is not None)]

        return solve

    ours = call(fastnode.odeint, compiled)
    references = {
        "native": call(fastnode.odeint, field),
        "torchdiffeq": call(torchdiffeq.odeint, field),
    }
    if name == "mlp":
        references["fuse"] = call(fastnode.odeint, fastnode.fuse(field))
    found, distance = ours(), {}
    for reference, solve in references.items():
        pairs = zip(found, solve(), strict=True)
        distance[reference] = max(float((a - b).norm() / (b.norm() + 1e-6)) for a, b in pairs)
    # Where the signs of ReLU's arguments differ so do gradients.
    assert max(distance.values()) < (2e-2 if name == "convolutions" else 2e-3)
    with torch.no_grad():
        for engine, func in (("fused", compiled), ("native", field)):
            solution = fastnode.solve(func, y0, TIMES, engine=engine, **SOLVER)
            evaluations[engine] = int(solution.nfe)
    compare(
        benchmark,
        f"compiled field, {part}",
        f"{name}, {batch}",
        ours,
        references,
        rounds=5,
        distance_to_reference=distance,
        evaluations=evaluations,
    )
