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
        self.timed, self.last, self.square = TimeLinear(2, 8), nn.Linear(9, 2), nn.Linear(2, 2)
        self.selu, self.leaky, self.sharp = nn.SELU(), nn.LeakyReLU(), nn.Softplus(beta=2.0)
        self.drop = nn.Dropout(0.0)
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
    "sizes of ones": with_time(lambda t, y: torch.ones(y.shape[0], 1, dtype=y.dtype) * t),
    "zeros": with_time(lambda t, y: torch.zeros_like(y[:, :1]) + t),
    "sizes of zeros": with_time(lambda t, y: t + torch.zeros(y.size(0), 1, dtype=y.dtype)),
    "as_tensor": with_time(lambda t, y: torch.as_tensor(t, dtype=y.dtype).expand(len_of(y), 1)),
    "full by keyword": with_time(
        lambda t, y: torch.full((len_of(y), 1), fill_value=t, dtype=y.dtype)
    ),
    "ones of a hidden layer": lambda self, t, y: self.last(with_ones(t, torch.tanh(self.plain(y)))),
    "elu": lambda self, t, y: self.second(F.elu(self.plain(y))),
    "leaky_relu": lambda self, t, y: self.second(F.leaky_relu(self.plain(y), 0.01, inplace=True)),
    "selu": lambda self, t, y: self.second(F.selu(self.plain(y))),
    "SELU": lambda self, t, y: self.second(self.selu(self.plain(y))),
    "LeakyReLU": lambda self, t, y: self.second(self.leaky(self.plain(y))),
    "softplus": lambda self, t, y: self.second(F.softplus(self.plain(y), beta=3.0)),
    "Softplus": lambda self, t, y: 0.5 * self.sharp(2 * self.second(self.sharp(self.plain(y)))),
    "dropout": lambda self, t, y: self.second(self.drop(torch.tanh(self.plain(self.drop(y))))),
    "F.dropout": lambda self, t, y: self.second(F.dropout(torch.sin(self.plain(y)), 0.2, False)),
    "no dropout": lambda self, t, y: self.second(F.dropout(torch.sin(self.plain(y)), p=0.0)),
    "last activation": lambda self, t, y: torch.tanh(self.second(torch.tanh(self.plain(y)))),
    "one layer": lambda self, t, y: F.elu(self.square(y)),
    "minus": lambda self, t, y: -self.second(torch.tanh(self.plain(y))),
    "minus a last activation": lambda self, t, y: -2 * torch.sin(self.square(y)),
    "factor": lambda self, t, y: self.field(t, y).mul(0.5) / 2,
    "factors": lambda self, t, y: torch.neg(self.second(3 * torch.sin(self.plain(y) / 2))),
    "minus the state": lambda self, t, y: self.second(torch.tanh(self.first(with_ones(t, -y)))),
    "factor and time": lambda self, t, y: 2 * self.last(with_ones(t, 3 * F.silu(self.plain(-y)))),
    "factor and field": lambda self, t, y: self.field(t, -y),
}


def len_of(y):
    return y.shape[0]


def with_ones(t, h):
    """As FFJORD's ConcatLinear."""
    return torch.cat([torch.ones_like(h[:, :1]) * t, h], 1)


@pytest.mark.parametrize("form", FORMS)
def test_a_field_is_solved_however_it_is_written(form):
    field = fuse(Written(FORMS[form]).double())
    y0 = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    # torch.full makes a constant of the time.
    t = torch.linspace(0, 1, 3, dtype=torch.float64, requires_grad="full" not in form)
    given = [y0, *([t] if t.requires_grad else []), *field.parameters()]
    results = []
    for func in (field, field.module):
        solution = fastnode.odeint(func, y0, t, rtol=1e-9, atol=1e-9)
        found = torch.autograd.grad(solution.square().sum(), given, allow_unused=True)
        results.append((solution, *found))
    assert results[0][0].grad_fn.name() == "MlpSolveBackward"
    for found, wanted in zip(*results, strict=True):
        # An autonomous field has a gradient of zero by the first time.
        assert (found is None) == (wanted is None)
        if found is not None:
            # Where an activation has a kink steps are those of another rounding.
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


SCALED = [form for form in FORMS if "minus" in form or "factor" in form or "last" in form]


@pytest.mark.parametrize("form", ["elu", "selu", "leaky_relu", "softplus", "Softplus", *SCALED])
def test_forms_pass_gradcheck(form):
    field = fuse(Written(FORMS[form]).double())
    names = [name for name, _ in field.named_parameters()]
    y0, t = torch.randn(2, 2, dtype=torch.float64), torch.tensor([0.0, 0.5]).double()

    def solve(y, *values):
        for name, value in zip(names, values, strict=True):
            owner, _, leaf = name.rpartition(".")
            field.module.get_submodule(owner)._parameters[leaf] = value
        return fastnode.odeint(field, y, t, method="rk4", engine="fused")[-1]

    values = [x.detach().clone().requires_grad_() for x in field.parameters()]
    assert torch.autograd.gradcheck(solve, (y0.requires_grad_(), *values), fast_mode=True)


@pytest.mark.parametrize(
    ("forward", "why"),
    [
        (lambda self, t, y: self.second(self.scale * y), "parameters of layers other than"),
        (lambda self, t, y: self.plain(t), "linear layer of something else than the state"),
        (lambda self, t, y: self.second(F.relu(F.relu(self.plain(y)))), "an activation of some"),
        (lambda self, t, y: self.second(F.elu(self.plain(y), 2.0)), "options of its own"),
        (lambda self, t, y: self.second(self.plain(y) / 0), "an operation that no perceptron has"),
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


class OfTensors(Written):
    def __init__(self):
        super().__init__(None)

    def forward(self, t, y):
        z = self.second(torch.tanh(self.plain(y)))
        return -z if isinstance(y, torch.Tensor) else z


def hooked():
    module = Written(FORMS["methods"])
    module.plain.register_forward_hook(lambda *_: None)
    return module


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (OnlyState, r"forward must take \(t, y\), got \(y\)"),
        (OfFourSamples, r"the module fails for a state \[3, 2\]"),
        (SwappedOnCall, "forward changes what it does from call to call"),
        (OfTensors, "the module returns something else"),
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
