"""Backward passes whose step is captured as a graph: CUDA's calls replaced."""

from __future__ import annotations

import pytest
import torch
from fake_cuda_graph import faked
from torch import nn

import fastnode
from fastnode import extension
from fastnode.adjoints.discrete.cuda_graph import BackwardStep

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)


class Field(nn.Module):
    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
        self.unused = nn.Parameter(torch.ones(2, dtype=dtype))

    def forward(self, t, y):
        return torch.sin(3 * t) * self.net(y)


@pytest.fixture
def pulls(monkeypatch):
    """How many steps captured backward passes have taken."""
    found = []
    vjp = BackwardStep.vjp

    def counted(self, *arguments):
        found.append(self)
        return vjp(self, *arguments)

    monkeypatch.setattr(BackwardStep, "vjp", counted)
    return found


@pytest.fixture
def runtimes():
    with faked() as made:
        yield made


def gradients(engine, field, y0, ts, loss=None, **options):
    field.zero_grad()
    y0 = tuple(x.clone().requires_grad_() for x in y0) if isinstance(y0, tuple) else y0.clone()
    leaves = y0 if isinstance(y0, tuple) else (y0.requires_grad_(),)
    solution = fastnode.solve(
        field, y0, ts, engine=engine, adjoint="checkpoint", **{"rtol": 1e-6, **options}
    )
    default = lambda s: sum(  # noqa: E731
        y.square().sum() for y in (s.ys if isinstance(s.ys, tuple) else (s.ys,))
    )
    (loss or default)(solution).backward()
    grads = [x.grad for x in (*leaves, *field.parameters())]
    return solution, [g.clone() for g in grads if g is not None]


def assert_same(field, y0, ts, rtol=1e-12, **options):
    native, wanted = gradients("native", field, y0, ts, **options)
    graph, found = gradients("graph", field, y0, ts, **options)
    assert graph.accepted == native.accepted > 1
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=0.1 * rtol)
    return graph


def start(dtype=torch.float64):
    return torch.linspace(-1, 2, 12, dtype=dtype).reshape(4, 3)


@pytest.mark.parametrize("span", [(0.0, 2.0), (1.0, -1.0)], ids=str)
@pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3", "dopri8"])
def test_gradients_are_those_of_the_native_engine(runtimes, pulls, method, span):
    solution = assert_same(Field(), start(), torch.tensor(span), method=method)
    assert len(pulls) == solution.accepted


def test_float32(runtimes, pulls):
    assert_same(Field(torch.float32), start(torch.float32), torch.tensor([0.0, 1.0]), rtol=1e-4)
    assert pulls


def test_states_at_the_ends_of_steps_have_gradients_too(runtimes, pulls):
    loss = lambda s: (s.steps.states[1:] ** 3).sum() + s.ys[-1].sum()  # noqa: E731
    assert_same(Field(), start(), torch.tensor([0.0, 1.0]), save="steps", loss=loss)
    assert pulls


class Two(Field):
    def forward(self, t, y):
        a, b = y
        return self.net(a) * b.sum(), -b * a.mean()


def test_a_tuple_state(runtimes, pulls):
    assert_same(Two(), (start(), torch.ones(2).double()), torch.tensor([0.0, 1.0]))
    assert pulls


def test_a_second_pass_captures_nothing(runtimes, pulls):
    field = Field()
    for end in (1.0, 2.0):
        with torch.no_grad():
            field.net[0].weight.mul_(1.1)
        assert_same(field, start() / end, torch.tensor([0.0, end]))
    assert len(set(map(id, pulls))) == 1


def test_a_field_that_is_independent_of_the_state(runtimes, pulls):
    class Drift(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.ones(3).double())

        def forward(self, t, y):
            return (self.rate * torch.sin(t)).expand_as(y)

    assert_same(Drift(), start(), torch.tensor([0.0, 3.0]))
    assert pulls


def test_a_capture_uses_aliases_of_the_parameters(runtimes, pulls):
    seen = set()

    class Watched(Field):
        def forward(self, t, y):
            if torch.is_grad_enabled() and y.requires_grad:
                seen.update((x, x.data_ptr()) for x in (self.net[0].weight, self.net[2].bias))
            return super().forward(t, y)

    field = Watched()
    outer = {x.data_ptr(): x for x in field.parameters()}
    gradients("graph", field, start(), torch.tensor([0.0, 1.0]))
    # A capture may not touch what autograd ties to the streams of other work.
    assert pulls and seen
    assert all(place in outer and x is not outer[place] for x, place in seen)
    assert set(map(id, field.parameters())) == set(map(id, outer.values()))


def test_parameters_outside_of_a_module_are_not_captured(runtimes, pulls):
    rate = torch.tensor(2.0).double().requires_grad_()

    def field(t, y):
        return -rate * y

    for engine in ("native", "graph"):
        ys = fastnode.solve(
            field, start(), torch.tensor([0.0, 1.0]), engine=engine, adjoint="checkpoint",
            adjoint_params=(rate,),
        ).ys  # fmt: skip
        ys.sum().backward()
    assert rate.grad is not None and rate.grad.isfinite() and not pulls


def test_parameters_that_are_read_elsewhere_are_not_captured(runtimes, pulls):
    class Listed(Field):
        """As torch's recurrent modules, which keep their weights in a list too."""

        def __init__(self):
            super().__init__()
            self.weights = [self.net[0].weight, self.net[2].weight]

        def forward(self, t, y):
            return torch.tanh(y @ self.weights[0].T) @ self.weights[1].T + self.net[2].bias

    for _ in range(2):
        assert_same(Listed(), start(), torch.tensor([0.0, 1.0]))
    assert not pulls


class Buffered(Field):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor(0.5).double())

    def forward(self, t, y):
        return self.scale * super().forward(t, y)


def test_unsupported_solves_are_not_captured(runtimes, pulls):
    ts = torch.tensor([0.0, 1.0])
    assert_same(Field(), start(), torch.tensor([0.0, 0.3, 0.7, 1.0]))
    assert_same(Buffered(), start(), ts)
    wanted = torch.tensor(2.0).double().requires_grad_()

    class WithArgument(Field):
        def forward(self, t, y, factor):
            return factor * super().forward(t, y)

    assert_same(WithArgument(), start(), ts, args=(wanted,))
    assert not pulls


def test_second_derivatives_go_through_the_steps(runtimes):
    field, y0 = Field(), start().requires_grad_()
    ys = fastnode.solve(
        field, y0, torch.tensor([0.0, 1.0]), engine="graph", adjoint="checkpoint"
    ).ys
    (first,) = torch.autograd.grad(ys.square().sum(), y0, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), y0)
    assert second.isfinite().all() and second.abs().sum() > 0
