"""Per-sample stepping: against torchode, eager and compiled.

256 van der Pol oscillators from (2, 0), mu from 0.1 to 50 in equal ratios, t in [0, 10]: the slow
ones turn once or twice, the stiff ones creep and do not jump, so that steps differ 100-fold.
torchode evaluates every sample until the last has finished; evaluations are counted for each
sample, calls for the field. Its calls cost most of our time: "the field alone" makes the same ones
again without a solver, and is the part of 1 that no solver can take away. torchode is compiled the
way its authors recommend and called warm.
``pip install torchode``.
"""

from __future__ import annotations

import math

import pytest
import torch
from ratio import compare, full

import fastnode

torchode = pytest.importorskip("torchode")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SAMPLES, TOLERANCE = 256, 1e-5
METHODS = {"dopri5": torchode.Dopri5, "tsit5": torchode.Tsit5}


def oscillators(t, y, mu):
    x, v = y.unbind(1)
    return torch.stack((v, mu * (1 - x * x) * v - x), 1)


class Counted:
    """A field that counts its calls and can repeat them."""

    def __init__(self, field):
        self.field, self.arguments = field, []

    @property
    def calls(self):
        return len(self.arguments)

    def __call__(self, t, y, mu):
        self.arguments.append((t.clone(), y.clone(), mu))
        return self.field(t, y, mu)

    def again(self):
        """Every call with nothing in between: what no solver that makes them can go below."""
        for arguments in self.arguments:
            self.field(*arguments)


def problem(outputs: int, dtype=torch.float32):
    mu = torch.logspace(math.log10(0.1), math.log10(50), SAMPLES, dtype=dtype, device=DEVICE)
    y0 = torch.tensor([2.0, 0.0], dtype=dtype, device=DEVICE).repeat(SAMPLES, 1)
    return y0, torch.linspace(0, 10, outputs, dtype=dtype, device=DEVICE), mu


def with_fastnode(
    field, method: str, outputs: int, dtype=torch.float32, tolerance: float = TOLERANCE
):
    y0, t, mu = problem(outputs, dtype)
    return lambda: fastnode.solve(
        field, y0, t, method=method, rtol=tolerance, atol=tolerance, per_sample=True, args=(mu,)
    )


def with_torchode(field, method: str, outputs: int, compiled: bool):
    y0, t, mu = problem(outputs)
    term = torchode.ODETerm(field, with_args=True)
    controller = torchode.IntegralController(TOLERANCE, TOLERANCE, term=term)
    solver = torchode.AutoDiffAdjoint(METHODS[method](term), controller).to(DEVICE)
    initial = torchode.InitialValueProblem(y0=y0, t_eval=t.expand(SAMPLES, -1).contiguous())
    torch._dynamo.reset()
    solve = torch.compile(solver.solve) if compiled else solver.solve
    return lambda: solve(initial, args=mu)


@torch.no_grad()
@pytest.mark.parametrize("outputs", [*full(2), 101])
@pytest.mark.parametrize("method", ["dopri5", *full("tsit5")])
def test_van_der_pol(benchmark, method, outputs):
    ours = with_fastnode(oscillators, method, outputs)
    references = {
        "torchode": with_torchode(oscillators, method, outputs, compiled=False),
        "torchode, compiled": with_torchode(oscillators, method, outputs, compiled=True),
    }
    exact = with_fastnode(oscillators, method, 2, torch.float64, 1e-11)().ys[-1].float()
    ends = {"fastnode": ours().ys[-1]}
    ends |= {name: solve().ys[:, -1] for name, solve in references.items()}
    for end in ends.values():
        torch.testing.assert_close(end, exact, rtol=5e-3, atol=5e-3)
    counted = {"fastnode": Counted(oscillators), "torchode": Counted(oscillators)}
    solution = with_fastnode(counted["fastnode"], method, outputs)()
    other = with_torchode(counted["torchode"], method, outputs, compiled=False)()
    evaluations = {
        "fastnode": int(solution.nfe.sum()),
        "torchode": int(other.stats["n_f_evals"].sum()),
    }
    references["the field alone"] = counted["fastnode"].again
    compare(
        benchmark,
        f"{method} per sample",
        f"van der Pol, {SAMPLES}, {outputs} times",
        ours,
        references,
        rounds=3,
        warm=1,
        errors={name: (end - exact).abs().max().item() for name, end in ends.items()},
        evaluations=evaluations,
        calls={name: field.calls for name, field in counted.items()},
        rejected={
            "fastnode": int(solution.rejected.sum()),
            "torchode": int((other.stats["n_steps"] - other.stats["n_accepted"]).sum()),
        },
    )
    assert evaluations["fastnode"] <= evaluations["torchode"]


@pytest.mark.parametrize("activation", ["tanh", *full("silu")])
@pytest.mark.parametrize("state, hidden, batch", [(2, 64, 32), (64, 128, 128), (64, 128, 1024)])
def test_mlps_with_gradients(benchmark, state, hidden, batch, activation):
    """Forward and backward pass of an MLP, each sample over an interval of its own."""
    torch.manual_seed(0)
    field = fastnode.nn.MLPField(state, hidden, 2, activation, "none").to(DEVICE)
    y0 = torch.randn(batch, state, device=DEVICE)
    ends = torch.linspace(0.5, 2, batch, device=DEVICE)[:, None]
    ts = torch.cat([torch.zeros_like(ends), ends], dim=1)
    controller = torchode.IntegralController(
        TOLERANCE, TOLERANCE, term=(term := torchode.ODETerm(lambda t, y: field(t, y)))
    )
    other = torchode.AutoDiffAdjoint(torchode.Dopri5(term), controller).to(DEVICE)
    initial = torchode.InitialValueProblem(y0=y0, t_eval=ts)

    def ours(func):
        return fastnode.solve(func, y0, ts, rtol=TOLERANCE, atol=TOLERANCE, per_sample=True).ys[-1]

    def trained(end):
        field.zero_grad()
        end().square().mean().backward()
        return [p.grad for p in field.parameters()]

    ends_of = {
        "fastnode": lambda: ours(field),
        "its reference engine": lambda: ours(lambda t, y: field(t, y)),
        "torchode": lambda: other.solve(initial).ys[:, -1],
    }
    found = {name: trained(end) for name, end in ends_of.items()}
    for each in found.values():
        for a, b in zip(each, found["fastnode"], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-4)
    call = ends_of.pop("fastnode")
    compare(
        benchmark,
        "perceptrons per sample, with gradients",
        f"({state}, {hidden}, {batch}), {activation}",
        lambda: trained(call),
        {name: (lambda end=end: trained(end)) for name, end in ends_of.items()},
        rounds=5,
    )
