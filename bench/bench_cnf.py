"""Continuous normalising flows: CNF against the same written plainly for torchdiffeq and diffrax.

Log-likelihoods, their gradients and whole training steps (mean log-likelihood, backward, Adam) by
dopri5 at 1e-5. All solve the same packed state, so that they take the same steps. diffrax is
optional (see ``rivals``), and jitted with its optimiser.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torchdiffeq
from bench_fields import ConcatSquash
from ratio import compare
from rivals import absent
from torch import nn

from fastnode import extension
from fastnode.nn import CNF

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)

SOLVER = {"rtol": 1e-5, "atol": 1e-5, "method": "dopri5"}
TIMES = torch.tensor([1.0, 0.0])
#: Name: dimensions and trace. FFJORD's toys, and rows of a UCI set (power) with their target.
FLOWS = {
    "plane, exact": (2, "exact"),
    "table, exact": (5, "exact"),
    "table, hutchinson": (5, "hutchinson"),
}
PARTS = ("log_prob", "log_prob + backward", "training step")
#: Small, so that the flow of the last round is that of the first.
RATE = 1e-6


class Net(nn.Module):
    def __init__(self, dim, hidden=64):
        super().__init__()
        sizes = ((dim, hidden), (hidden, hidden), (hidden, dim))
        self.layers = nn.ModuleList(ConcatSquash(*each) for each in sizes)

    def forward(self, t, x):
        for i, layer in enumerate(self.layers):
            x = layer(t, torch.tanh(x) if i else x)
        return x


class Plain(nn.Module):
    """A flow as users of torchdiffeq write it."""

    def __init__(self, field, trace, solve):
        super().__init__()
        self.field, self.trace, self.solve = field, trace, solve
        self.evaluations = 0

    def log_prob(self, x, noise):
        self.noise, self.evaluations = noise, 0
        state = torch.cat([x, x.new_zeros(len(x), 1)], 1)
        end = self.solve(self, state, TIMES, **SOLVER)[-1]
        z, change = end[:, :-1], end[:, -1]
        return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi)) - change

    def forward(self, t, state):
        self.evaluations += 1
        recorded = torch.is_grad_enabled()
        with torch.enable_grad():
            z = state[:, :-1]
            z = z if z.requires_grad else z.detach().requires_grad_()
            f, trace = self.field(t, z), 0
            if self.trace == "hutchinson":
                (row,) = torch.autograd.grad(f, z, self.noise, create_graph=recorded)
                trace = (row * self.noise).sum(1)
            else:
                for i in range(z.shape[1]):
                    (row,) = torch.autograd.grad(
                        f[:, i].sum(), z, create_graph=recorded, retain_graph=True
                    )
                    trace = trace + row[:, i]
        return torch.cat([f, -trace[:, None]], 1)


def work(part, module, log_prob):
    """Function that does the part and returns what is to agree."""
    parameters = list(module.parameters())
    optimizer = torch.optim.Adam(parameters, RATE)

    def evaluate():
        with torch.no_grad():
            return [log_prob()]

    def differentiate():
        return torch.autograd.grad(log_prob().mean(), parameters)

    def train():
        optimizer.zero_grad()
        loss = -log_prob().mean()
        loss.backward()
        optimizer.step()
        return [loss.detach()]

    return dict(zip(PARTS, (evaluate, differentiate, train), strict=True))[part]


def with_diffrax(part, field, trace, x, noise):
    """The same in diffrax, jitted; the function and how results become tensors."""
    import diffrax
    import jax
    import jax.numpy as jnp
    import numpy as np

    names = [name for name, _ in field.named_parameters()]
    held = {name: jnp.asarray(p.detach().numpy()) for name, p in field.named_parameters()}
    points, e = jnp.asarray(x.numpy()), jnp.asarray(noise.numpy())

    def net(held, t, z):
        for i in range(3):
            z = jnp.tanh(z) if i else z
            own = {
                name: held[f"layers.{i}.{name}"]
                for name in (
                    "layer.weight",
                    "layer.bias",
                    "gate.weight",
                    "gate.bias",
                    "shift.weight",
                )
            }
            gate = jax.nn.sigmoid(own["gate.weight"][:, 0] * t + own["gate.bias"])
            z = z @ own["layer.weight"].T + own["layer.bias"]
            z = z * gate + own["shift.weight"][:, 0] * t
        return z  # fmt: skip

    def both(t, state, held):
        f, product = jax.vjp(lambda z: net(held, t, z), state[:, :-1])
        if trace == "hutchinson":
            total = (product(e)[0] * e).sum(1)
        else:
            rows = (product(jnp.zeros_like(f).at[:, i].set(1))[0] for i in range(f.shape[1]))
            total = sum(row[:, i] for i, row in enumerate(rows))
        return jnp.concatenate([f, -total[:, None]], 1)

    def log_prob(held):
        end = diffrax.diffeqsolve(
            diffrax.ODETerm(both),
            diffrax.Dopri5(),
            t0=1.0,
            t1=0.0,
            dt0=None,
            y0=jnp.concatenate([points, jnp.zeros((len(points), 1))], 1),
            args=held,
            stepsize_controller=diffrax.PIDController(rtol=1e-5, atol=1e-5),
            # Differentiating costs by it.
            max_steps=64,
        ).ys[-1]
        z, change = end[:, :-1], end[:, -1]
        return -0.5 * ((z**2).sum(1) + z.shape[1] * math.log(2 * math.pi)) - change

    def adam(held, state):
        loss, found = jax.value_and_grad(lambda h: -log_prob(h).mean())(held)
        count, first, second = state
        count = count + 1
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, found)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, found)

        def move(p, m, v):
            root = jnp.sqrt(v / (1 - 0.999**count)) + 1e-8
            return p - RATE * m / (1 - 0.9**count) / root

        return jax.tree.map(move, held, first, second), (count, first, second), loss

    if part == "training step":
        zeros = jax.tree.map(jnp.zeros_like, held)
        run, kept = jax.jit(adam), [held, (jnp.zeros(()), zeros, zeros)]

        def train():
            *kept[:], loss = run(*kept)
            return [jax.block_until_ready(loss)]

        call = train
    elif part == "log_prob":
        run = jax.jit(log_prob)
        call = lambda: [jax.block_until_ready(run(held))]  # noqa: E731
    else:
        run = jax.jit(jax.grad(lambda h: log_prob(h).mean()))

        def call():
            found = jax.block_until_ready(run(held))
            return [found[name] for name in names]

    return call, lambda found: [torch.from_numpy(np.array(each)) for each in found]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("batch", [128, 1024])
@pytest.mark.parametrize("name", FLOWS)
def test_flows(benchmark, one_thread, name, batch, part):
    dim, trace = FLOWS[name]
    torch.manual_seed(1)
    net = Net(dim)
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() >= 2:
                p.mul_(2)
    x = torch.randn(batch, dim)
    generator = torch.Generator()

    def draw():
        bits = torch.randint(2, x.shape, generator=generator.manual_seed(0))
        return (2 * bits - 1).to(x)

    def ours(compile):
        flow = CNF(copy.deepcopy(net), trace=trace, compile=compile)
        return flow, work(part, flow, lambda: flow.log_prob(x, generator.manual_seed(0)))

    def plain(solve):
        flow = Plain(copy.deepcopy(net), trace, solve)
        return flow, work(part, flow, lambda: flow.log_prob(x, draw()))

    flow, run = ours(True)
    other, by_torchdiffeq = plain(torchdiffeq.odeint)
    references = {"native": ours(False)[1], "torchdiffeq": by_torchdiffeq}
    if part != "log_prob":
        references["torchdiffeq, adjoint"] = plain(torchdiffeq.odeint_adjoint)[1]
    results = {reference: call() for reference, call in references.items()}
    if absent("diffrax") is None:
        jitted, read = with_diffrax(part, net, trace, x, draw())
        references["diffrax, compiled"] = jitted
        results["diffrax, compiled"] = read(jitted())
    found, distance = torch.cat([each.flatten() for each in run()]), {}
    for reference, parts in results.items():
        wanted = torch.cat([each.flatten() for each in parts])
        distance[reference] = float((found - wanted).norm() / wanted.norm())
    # The continuous adjoint has errors of its own.
    assert all(d < (2e-2 if "adjoint" in name else 2e-3) for name, d in distance.items()), distance
    compare(
        benchmark,
        part,
        f"{name}, {batch}",
        run,
        references,
        rounds=5,
        distance_to_reference=distance,
        evaluations={"fastnode": flow.nfe, "torchdiffeq": other.evaluations},
    )
