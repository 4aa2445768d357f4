"""Fields that change between solves, and input that no solve can take."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import fastnode
from fastnode import extension
from fastnode.nn import MLPField

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)
T = torch.tensor([0.0, 1.0])


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, t, y):
        return self.net(y)


class TimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, t, y):
        return self.last(
            torch.tanh(self.first(torch.cat([t * torch.ones_like(y[..., :1]), y], -1)))
        )


def make(kind):
    torch.manual_seed(0)
    return MLPField(2, 8, 2, "tanh", "none") if kind == "MLPField" else fastnode.fuse(Plain())


def linear(field):
    return [module for module in field.modules() if isinstance(module, nn.Linear)]


def agrees(field, y0):
    ours = fastnode.odeint(field, y0, T)
    assert ours.grad_fn.name() == "MlpSolveBackward"
    torch.testing.assert_close(ours, fastnode.odeint(lambda t, y: field(t, y), y0, T))


@pytest.mark.parametrize("kind", ["MLPField", "fuse"])
def test_changed_parameters_are_used(kind):
    field, y0 = make(kind), torch.randn(3, 2)
    agrees(field, y0)
    optimizer = torch.optim.SGD(field.parameters(), lr=0.5)
    fastnode.odeint(field, y0, T).sum().backward()
    optimizer.step()
    agrees(field, y0)
    field.load_state_dict({k: torch.randn_like(v) for k, v in field.state_dict().items()})
    agrees(field, y0)
    linear(field)[0].weight = nn.Parameter(torch.randn(8, 2))
    agrees(field, y0)
    linear(field)[0].weight.data = torch.randn(8, 2)
    agrees(field, y0)
    field.double()
    agrees(field, y0.double())
    for layer, size in zip(linear(field), [(5, 2), (2, 5)], strict=True):
        layer.weight = nn.Parameter(torch.randn(size).double())
        layer.bias = nn.Parameter(torch.randn(size[0]).double())
    agrees(field, y0.double())
    linear(field)[1].bias = None
    agrees(field, y0.double())


@pytest.mark.parametrize("what", ["weight norm", "weight", "bias"])
@pytest.mark.parametrize("kind", ["MLPField", "fuse"])
def test_parametrised_layers_are_solved_by_other_engines(kind, what):
    field, y0 = make(kind), torch.randn(3, 2)
    if what == "weight norm":
        torch.nn.utils.parametrizations.weight_norm(linear(field)[0])
    else:
        parametrize.register_parametrization(linear(field)[0], what, nn.Tanh())
    solution = fastnode.odeint(field, y0, T)
    assert solution.grad_fn.name() != "MlpSolveBackward"
    torch.testing.assert_close(solution, fastnode.odeint(lambda t, y: field(t, y), y0, T))


def replace_forward(module):
    before = module.forward
    module.forward = lambda *args: 2 * before(*args)


CHANGES = {
    "forward hook": lambda module: module.register_forward_hook(lambda *args: None),
    "forward pre-hook": lambda module: module.register_forward_pre_hook(lambda *args: None),
    "backward hook": lambda module: module.register_full_backward_hook(lambda *args: None),
    "backward pre-hook": lambda module: module.register_full_backward_pre_hook(lambda *args: None),
    "forward of its own": replace_forward,
    "no weight": lambda module: setattr(module, "weight", None),
    "weight that is no parameter": lambda module: delattr(module, "weight"),
    "bias that is no parameter": lambda module: delattr(module, "bias"),
}


@pytest.mark.parametrize("reader", ["C++", "Python"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["MLPField", "fuse"])
def test_both_readers_see_what_a_call_would_do(kind, change, reader, monkeypatch):
    """What torch.compile traces, and what reads the field otherwise."""
    if reader == "Python":
        monkeypatch.setattr(extension, "AVAILABLE", False)
    field = make(kind)
    layers, _ = field.perceptron()
    for (weight, bias, column), module in zip(layers, linear(field), strict=True):
        assert weight is module.weight and bias is module.bias and column == -1
    CHANGES[change](linear(field)[1])
    assert field.perceptron() is None


@pytest.mark.parametrize("reader", ["C++", "Python"])
def test_both_readers_find_the_column_of_the_time(reader, monkeypatch):
    if reader == "Python":
        monkeypatch.setattr(extension, "AVAILABLE", False)
    layers, _ = MLPField(2, 8, 3, time="once").perceptron()
    assert [column for _, _, column in layers] == [2, -1, -1]
    fused = fastnode.fuse(TimeFirst())
    assert [column for _, _, column in fused.perceptron()[0]] == [0, -1]


@pytest.mark.parametrize("kind", ["MLPField", "fuse"])
def test_mismatched_dtypes_and_devices_are_errors(kind):
    field = make(kind)
    with pytest.raises(RuntimeError, match="dtype"):
        fastnode.odeint(field, torch.randn(3, 2).double(), T)
    with pytest.raises((RuntimeError, ValueError, NotImplementedError)):
        fastnode.odeint(field, torch.randn(3, 2, device="meta"), T)
    linear(field)[0].weight = nn.Parameter(torch.randn(8, 2, device="meta"))
    with pytest.raises(ValueError, match="engine 'fused' cannot run"):
        fastnode.solve(field, torch.randn(3, 2), T, engine="fused")


@pytest.mark.parametrize("kind", ["MLPField", "fuse"])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named(kind, layer, value):
    field = make(kind)
    with torch.no_grad():
        linear(field)[layer].weight[0, 0] = value
    # tanh of an infinite number is 1: only what reaches the derivatives is an error.
    if layer == 0 and math.isinf(value):
        assert fastnode.odeint(field, torch.ones(3, 2), T).isfinite().all()
        return
    with pytest.raises(fastnode.NonFiniteState, match="NaN" if math.isnan(value) else "inf"):
        fastnode.odeint(field, torch.randn(3, 2), T)


def test_widths_of_zero_are_errors_or_other_engines():
    with pytest.raises(ValueError, match="at least 1"):
        MLPField(2, 0)
    field = make("fuse")
    linear(field)[0].weight = nn.Parameter(torch.empty(0, 2))
    linear(field)[0].bias = nn.Parameter(torch.empty(0))
    linear(field)[1].weight = nn.Parameter(torch.empty(2, 0))
    y0 = torch.randn(3, 2)
    torch.testing.assert_close(
        fastnode.odeint(field, y0, T), fastnode.odeint(lambda t, y: field(t, y), y0, T)
    )


def test_empty_batches_are_solved_by_other_engines():
    field = make("MLPField")
    assert fastnode.odeint(field, torch.empty(0, 2), T).shape == (2, 0, 2)


def test_states_that_are_views_are_read_as_they_lie():
    field = make("MLPField")
    wide = torch.randn(2, 6).t()
    agrees(field, wide[::2])
    agrees(field, torch.randn(5, 3, 2).transpose(0, 1))


def test_wide_fields_are_fused_when_named():
    field, y0 = MLPField(2, [1500, 1500]), torch.randn(16, 2)
    with torch.no_grad():
        ours = fastnode.odeint(field, y0, T, engine="fused", rtol=1e-4, atol=1e-4)
        native = fastnode.odeint(field, y0, T, engine="native", rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours, native, rtol=1e-4, atol=1e-4)
