"""What fastnode.fuse reads in a module, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastnode
from fastnode import NotFusable, extension, fuse

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)


class Plain(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.net = nn.Sequential(*layers)

    def forward(self, t, y):
        return self.net(y)


class TimeOnce(Plain):
    def forward(self, t, y):
        return self.net(torch.cat([y, t.expand(y.shape[0], 1)], dim=-1))


class TimeEverywhere(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(9, 2)

    def forward(self, t, y):
        column = torch.ones_like(y[:, :1]) * t
        hidden = torch.sin(self.first(torch.cat([column, y], 1)))
        return self.second(torch.cat([column, hidden], 1))


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 8), nn.Linear(8, 2, bias=False)

    def forward(self, t, y):
        return self.second(F.silu(self.first(y)))


class Changed(Plain):
    def __init__(self, change):
        super().__init__(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
        self.change = change

    def forward(self, t, y):
        return self.change(self, t, y)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Plain(nn.Linear(2, 8), nn.ELU(), nn.Linear(8, 5), nn.ELU(), nn.Linear(5, 2)),
        lambda: Plain(nn.Linear(2, 2)),
        lambda: TimeOnce(nn.Linear(3, 8), nn.Softplus(), nn.Linear(8, 2)),
        TimeEverywhere,
        Functional,
    ],
)
def test_solutions_and_gradients_are_those_of_the_module(make):
    module = make().double()
    field = fuse(module)
    y0, t = torch.randn(5, 2).double(), torch.linspace(0, 1, 4).double()
    found = []
    for func in (field, module):
        module.zero_grad()
        solution = fastnode.odeint(func, y0, t, rtol=1e-7, atol=1e-7)
        solution.square().sum().backward()
        found.append([solution.detach(), *(p.grad for p in module.parameters())])
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-9)
    assert fastnode.odeint(field, y0, t).grad_fn.name() == "MlpSolveBackward"


@pytest.mark.parametrize(
    ("change", "operation"),
    [
        (lambda self, t, y: self.net(y**3), "pow"),
        (lambda self, t, y: -(self.net(y) + y), "add"),
        (lambda self, t, y: 2 / self.net(y), "truediv"),
        (lambda self, t, y: self.net(y) * float("inf"), "mul"),
        (lambda self, t, y: self.net(y) * self.net[2].bias, "bias"),
        (lambda self, t, y: self.net(y) + y, "add"),
        (lambda self, t, y: self.net(t * y), "mul"),
        (lambda self, t, y: torch.tanh(torch.tanh(self.net(y))), "tanh"),
        (lambda self, t, y: torch.sigmoid(self.net(y)), "sigmoid beside tanh"),
        (lambda self, t, y: 2 * torch.cat([y, t.expand(3, 1)], 1), "mul"),
        (lambda self, t, y: self.net(torch.cos(y)), "cos"),
        (lambda self, t, y: self.net(y) if t > 0 else y, "control flow"),
    ],
)
def test_refuses_what_is_no_perceptron_and_names_it(change, operation):
    with pytest.raises(NotFusable) as error:
        fuse(Changed(change))
    assert operation in str(error.value)


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        ((nn.Linear(2, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 2)), "LayerNorm"),
        ((nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), "relu"),
        ((nn.Linear(2, 8), nn.ELU(alpha=2.0), nn.Linear(8, 2)), "alpha"),
        ((nn.Linear(2, 8), nn.Linear(8, 2)), "two linear layers"),
        ((nn.Linear(2, 8), nn.GELU("tanh"), nn.Linear(8, 2)), "approximate"),
        ((nn.Linear(2, 8), nn.LeakyReLU(0.2), nn.Linear(8, 2)), "negative_slope=0.2"),
        ((nn.Linear(2, 8), nn.Softplus(threshold=5), nn.Linear(8, 2)), "threshold=5"),
        ((nn.Linear(2, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 2)), "dropout in training"),
    ],
)
def test_refuses_layers_that_it_does_not_know(layers, named):
    with pytest.raises(NotFusable, match=named):
        fuse(Plain(*layers))


def test_parameters_replaced_later_are_used():
    module = Functional()
    field = fuse(module)
    module.first.weight = nn.Parameter(torch.randn(8, 2))
    y0, t = torch.randn(3, 2), torch.tensor([0.0, 1.0])
    torch.testing.assert_close(fastnode.odeint(field, y0, t), fastnode.odeint(module, y0, t))


def test_fuse_takes_modules_and_leaves_fused_fields():
    field = fastnode.nn.MLPField(2, 8)
    assert fuse(field) is field
    fused = fuse(Functional())
    assert fuse(fused) is fused
    with pytest.raises(TypeError, match="nn.Module"):
        fuse(lambda t, y: -y)
