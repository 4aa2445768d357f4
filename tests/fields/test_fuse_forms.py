"""Ways to write a perceptron that fastnode.fuse reads, and what it says of those it does not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastnode
from fastnode import NotFusable, extension, fuse
from fastnode.nn import MLPField
from fastnode.nn.fields import TimeLinear

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)


class Written(nn.Module):
    """Layers that take a time (``first``, ``second``) and such as do not, and a forward."""

    def __init__(self, forward):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 2)
        self.plain, self.same = nn.Linear(2, 8), nn.Identity()
        self.timed = TimeLinear(2, 8)
        self.field = MLPField(2, 8, activation="tanh")
        self.scale = nn.Parameter(torch.ones(2))
        self.written = forward

    def forward(self, t, y):
        return self.written(self, t, y)


def with_time(make):
    """A perceptron to whose first layer the time is appended as ``make`` writes it."""

    def forward(self, t, y):
        return self.second(torch.tanh(self.first(torch.cat([y, make(t, y)], dim=1))))

    return forward


FORMS = {
    "new_full": with_time(lambda t, y: y.new_full((y.shape[0], 1), t)),
    "new_ones": with_time(lambda t, y: t * y.new_ones(y.size(0), 1)),
    "full": with_time(lambda t, y: torch.full((y.shape[0], 1), t, dtype=y.dtype)),
    "ones": with_time(lambda t, y: torch.mul(torch.ones(y.shape, dtype=y.dtype)[:, :1], t)),
    "full_like": with_time(lambda t, y: torch.full_like(y[:, :1], t)),
    "arithmetic of sizes": with_time(lambda t, y: t.expand(y.shape[0] + 2 - 2, y.dim() - 1)),
    "methods": lambda self, t, y: self.second(self.plain(y).tanh()),
    "identity": lambda self, t, y: self.same(self.second(F.silu(self.plain(self.same(y))))),
    "TimeLinear": lambda self, t, y: self.second(torch.sigmoid(self.timed(t, y))),
    "MLPField": lambda self, t, y: self.field(t, y),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_field_is_solved_however_it_is_written(form):
    field = fuse(Written(FORMS[form]).double())
    y0, t = torch.randn(5, 2).double(), torch.linspace(0, 1, 3).double()
    found = fastnode.odeint(field, y0, t, rtol=1e-9, atol=1e-9)
    wanted = fastnode.odeint(field.module, y0, t, rtol=1e-9, atol=1e-9)
    assert found.grad_fn.name() == "MlpSolveBackward"
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("forward", "why"),
    [
        (lambda self, t, y: self.second(self.scale * y), "parameters of layers other than"),
        (lambda self, t, y: self.plain(t), "linear layer of something else than the state"),
        (lambda self, t, y: self.second(F.relu(F.relu(self.plain(y)))), "an activation of some"),
        (lambda self, t, y: self.second(F.elu(self.plain(y), 2.0)), "options of its own"),
        (lambda self, t, y: self.second(torch.cat([y, y], 1)), "a concatenation of anything but"),
        (lambda self, t, y: self.second(torch.cat([y, t.expand(5, 2)])), "by features"),
        (
            lambda self, t, y: self.first(torch.cat([torch.cat([y, t], 1), t], 1)),
            "a time appended where it is not the next layer's input",
        ),
        (lambda self, t, y: self.second(y.clone()), "an operation that no perceptron has: clone"),
        (lambda self, t, y: self.second(t.flatten()), "an operation that no perceptron has"),
    ],
)
def test_what_stands_in_the_way_is_said(forward, why):
    with pytest.raises(NotFusable, match=why):
        fuse(Written(forward))


class OnlyState(nn.Module):
    def forward(self, y):
        return y


class OfFourSamples(Written):
    def __init__(self):
        super().__init__(with_time(lambda t, y: t.expand(4, 1)))


class SwappedOnCall(Written):
    """Reads as one perceptron and is another one from the second call on."""

    def __init__(self):
        super().__init__(None)
        self.other, self.calls = nn.Linear(2, 8), 0

    def forward(self, t, y):
        self.calls += 1
        return self.second(torch.tanh((self.plain if self.calls == 1 else self.other)(y)))


def hooked():
    module = Written(FORMS["methods"])
    module.plain.register_forward_hook(lambda *_: None)
    return module


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (OnlyState, r"forward must take \(t, y\), got \(y\)"),
        (OfFourSamples, r"the module fails for a state \[3, 2\]"),
        (SwappedOnCall, "the module returns something else"),
        (hooked, "hooks or parametrisations"),
    ],
)
def test_what_a_call_would_not_do_is_refused(make, why):
    with pytest.raises(NotFusable, match=why):
        fuse(make())


def test_more_layers_than_the_engine_takes_are_refused():
    layers = [nn.Linear(2, 2) for _ in range(9)]
    between = [each for layer in layers for each in (nn.Tanh(), layer)][1:]

    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(*between)

        def forward(self, t, y):
            return self.net(y)

    with pytest.raises(NotFusable, match="more than 8 linear layers"):
        fuse(Deep())


@pytest.mark.parametrize("place", ["field", "inside"])
def test_a_hook_set_later_is_called(place):
    """And the solve is that of an engine that calls it."""
    module = Written(FORMS["methods"])
    field, seen = fuse(module), []
    hooked = field if place == "field" else module.plain
    hooked.register_forward_hook(lambda module, args, out: seen.append(0) or 2 * out)
    y0, t = torch.randn(5, 2), torch.tensor([0.0, 1.0])
    found = fastnode.odeint(field, y0, t, rtol=1e-6, atol=1e-6)
    assert seen
    wanted = fastnode.odeint(lambda t, y: field(t, y), y0, t, rtol=1e-6, atol=1e-6)
    assert torch.equal(found, wanted)
    with torch.no_grad():
        alone = fastnode.solve(field, y0, t, per_sample=True)
        count = len(seen)
        again = fastnode.solve(lambda t, y: field(t, y), y0, t, per_sample=True)
        assert torch.equal(alone.ys, again.ys) and len(seen) > count
