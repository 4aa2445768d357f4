"""Every method through odeint, beside torchdiffeq where that has it."""

from __future__ import annotations

import pytest
import torch
import torchdiffeq
from torchdiffeq._impl.odeint import SOLVERS

import fastnode
from fastnode.engines.methods import ADAPTIVE, NAMES
from fastnode.tableaus import METHODS

NEWER = {"tsit5", "implicit_euler", "implicit_midpoint", "trapezoid", "radauIIA3", "radauIIA5"} | {
    "gl4",
    "gl6",
    "sdirk2",
    "trbdf2",
}
#: Tolerances at which a low order is still at work.
TOLERANCES = {"dopri8": 1e-8, "bosh3": 1e-5, "fehlberg2": 1e-4, "adaptive_heun": 1e-4}


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = torch.nn.Linear(4, 16, dtype=torch.float64)
        self.outer = torch.nn.Linear(16, 4, dtype=torch.float64)
        self.seen = []

    def forward(self, t, y):
        self.seen.append(t.item())
        return self.outer(torch.tanh(self.inner(y))) + torch.sin(3 * t) * y


def start():
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def grid(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_every_method_of_torchdiffeq_is_there():
    assert set(NAMES) == set(SOLVERS) | NEWER


@pytest.mark.parametrize("t", [grid(0, 0.3, 1, 2.5), grid(2.5, 1, -0.2)], ids=["up", "down"])
@pytest.mark.parametrize("method", ["heun2", "heun3"])
def test_fixed_step_methods_agree(method, t):
    for options in (None, {"step_size": 0.11, "interp": "cubic"}, {"perturb": True}):
        ours = fastnode.odeint(Net(), start(), t, method=method, options=options)
        theirs = torchdiffeq.odeint(Net(), start(), t, method=method, options=options)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def evaluations(t, **arguments):
    """Where each library evaluates the field, and our solution."""
    net = Net()
    ours = fastnode.odeint(net, start(), t, **arguments)
    seen, net.seen = net.seen, []
    torchdiffeq.odeint(net, start(), t, **arguments)
    assert len(seen) <= len(net.seen)
    return seen, net.seen, ours


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("method", "tolerance"), TOLERANCES.items())
def test_odeint_adaptive_steps_match_torchdiffeq(method, tolerance, backward):
    t = grid(2.5, 0) if backward else grid(0, 2.5)
    arguments = {"method": method, "rtol": tolerance, "atol": tolerance}
    per_step = len(METHODS[method].a) - 1
    ours, theirs, _ = evaluations(t, **arguments)
    # Two evaluations for the guess, then those of the first step. Its error may be so far below the
    # tolerance that it is rounding; then the size of the next step is not determined either.
    assert ours[: 2 + per_step] == pytest.approx(theirs[: 2 + per_step], rel=1e-9, abs=1e-12)
    # From a step of 0.3 on, no error estimate is below 5 % of the tolerance: rounding, about 1e-15,
    # is 1e-5 of it at most, and 1e-6 of the next step.
    ours, theirs, found = evaluations(t, **arguments, options={"first_step": 0.3})
    common = len(ours) - 2 * per_step
    assert common > 20 and ours[:common] == pytest.approx(theirs[:common], rel=1e-6, abs=1e-9)
    wanted = fastnode.odeint(Net(), start(), t, method="dopri8", rtol=1e-11, atol=1e-11)
    assert (found - wanted).abs().max() < 300 * tolerance


@pytest.mark.parametrize("method", ["dopri8", "bosh3"])
def test_output_inside_steps_is_not_worse_than_torchdiffeqs(method):
    t = torch.linspace(0, 2.5, 60, dtype=torch.float64)
    arguments = {"method": method, "rtol": 1e-7, "atol": 1e-7}
    wanted = fastnode.odeint(Net(), start(), t, method="dopri8", rtol=1e-12, atol=1e-12)
    ours = fastnode.odeint(Net(), start(), t, **arguments)
    theirs = torchdiffeq.odeint(Net(), start(), t, **arguments)
    gain = 100 if method == "dopri8" else 0.9
    assert gain * (ours - wanted).abs().max() < (theirs - wanted).abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", NAMES)
def test_every_method_takes_every_state(method, dtype):
    t = torch.linspace(0, 1, 9, dtype=dtype)
    arguments = {"method": method, "rtol": 1e-4, "atol": 1e-4}
    for y0 in (torch.tensor(1.0, dtype=dtype), torch.ones(2, 3, dtype=dtype)):
        y = fastnode.odeint(lambda t, y: -y, y0, t, **arguments)
        assert y.shape == (9, *y0.shape) and y.dtype == dtype
        bound = 0.06 if method in ("euler", "implicit_euler") else 1e-2
        assert (y[-1] - torch.exp(torch.tensor(-1.0))).abs().max() < bound
    first, second = fastnode.odeint(lambda t, y: (-y[0], y[1] - y[1]), (y0, y0[0]), t, **arguments)
    assert first.shape == (9, 2, 3) and torch.equal(second[-1], y0[0])
    assert fastnode.odeint(lambda t, y: -y, y0, t[:1], **arguments).shape == (1, 2, 3)


@pytest.mark.parametrize("method", [name for name in NAMES if name != "scipy_solver"])
def test_odeint_gradients_match_a_precise_solve(method):
    t, net = torch.linspace(0, 1, 21, dtype=torch.float64), Net()
    arguments = {"method": method}
    if method in ADAPTIVE:
        arguments |= {"rtol": 1e-5, "atol": 1e-5}

    def derivatives(**arguments):
        y0 = start().requires_grad_()
        loss = fastnode.odeint(net, y0, t, **arguments)[-1].square().sum()
        return torch.autograd.grad(loss, (y0, *net.parameters()))

    close = 0.3 if method in ("euler", "implicit_euler") else 0.02
    for ours, wanted in zip(derivatives(**arguments), derivatives(rtol=1e-9), strict=True):
        assert (ours - wanted).norm() < close * wanted.norm()


def test_unknown_methods_are_refused_by_name():
    with pytest.raises(ValueError, match="method must be one of dopri5.*'rk5'"):
        fastnode.odeint(Net(), start(), grid(0, 1), method="rk5")
