"""What fastnode.fuse returns is the module to those who hold it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastnode
from fastnode import NotFusable, extension, fuse

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)
T = torch.tensor([0.0, 1.0])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("mean", torch.zeros(2))
        self.use, self.nfe = True, 0

    def forward(self, t, y, scale=1.0, *args, **kwargs):
        self.nfe += 1
        return self.net(y) * scale if self.use else -self.net(y)

    def described(self):
        return "a net"


def test_names_of_parameters_and_buffers_are_kept():
    module = Net()
    field = fuse(module)
    assert list(field.state_dict()) == list(module.state_dict())
    assert [n for n, _ in field.named_parameters()] == [n for n, _ in module.named_parameters()]
    assert [n for n, _ in field.named_buffers()] == [n for n, _ in module.named_buffers()]
    whole, fused = (nn.ModuleDict({"field": x}) for x in (module, field))
    assert list(fused.state_dict()) == list(whole.state_dict())
    names = [name for name, _ in fused.named_parameters()]
    assert names == [name for name, _ in whole.named_parameters()]
    assert len(list(field.parameters())) == 5


@pytest.mark.parametrize("nested", [False, True])
def test_state_dicts_are_exchanged_with_the_module(nested):
    def model(x):
        return nn.ModuleDict({"field": x}) if nested else x

    plain, fused = model(Net()), model(fuse(Net()))
    fused.load_state_dict(plain.state_dict())
    for a, b in zip(plain.parameters(), fused.parameters(), strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        for x in fused.parameters():
            x.add_(1)
    plain.load_state_dict(fused.state_dict())
    assert all(map(torch.equal, plain.parameters(), fused.parameters()))
    state = plain.state_dict()
    state["other"] = state.pop(next(iter(state)))
    with pytest.raises(RuntimeError, match="Missing key.*\n.*Unexpected key"):
        fused.load_state_dict(state)


def test_functional_call_takes_the_names():
    field, y0 = fuse(Net()), torch.randn(3, 2)
    given = {name: 2 * x.detach() for name, x in field.named_parameters() if "net" in name}
    given = {name: x.requires_grad_() for name, x in given.items()}
    found = torch.func.functional_call(field, given, (T[0], y0))
    assert torch.equal(found, torch.func.functional_call(field.module, given, (T[0], y0)))


def test_attributes_are_those_of_the_module():
    module = Net()
    field = fuse(module)
    assert field.net is module.net and field.described() == "a net" and field.mean is module.mean
    assert not hasattr(field, "nothing")
    y0 = torch.randn(3, 2)
    before = fastnode.odeint(field, y0, T)
    field.use, field.nfe = False, 7
    assert module.use is False and module.nfe == 7
    after = fastnode.odeint(field, y0, T, engine="fused")
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, fastnode.odeint(module, y0, T))
    field.net = nn.Sequential(nn.Linear(2, 2))
    assert list(module.net.children()) == list(field.net.children())
    torch.testing.assert_close(fastnode.odeint(field, y0, T), fastnode.odeint(module, y0, T))


def test_further_arguments_of_forward_have_their_defaults():
    module, y0 = Net(), torch.randn(3, 2)
    field = fuse(module)
    torch.testing.assert_close(field(T[0], y0, 2.0), module(T[0], y0, scale=2.0, other=1))
    found = fastnode.odeint(field, y0, T, engine="fused")
    torch.testing.assert_close(found, fastnode.odeint(module, y0, T))
    # With args of its own a solve runs on another engine.
    scaled = fastnode.odeint(field, y0, T, args=(2.0,))
    torch.testing.assert_close(scaled, fastnode.odeint(module, y0, T, args=(2.0,)))
    assert not torch.allclose(scaled, found)


class Called(Net):
    def callback_step(self, t0, y0, dt):
        self.nfe += 100


def test_callbacks_of_the_module_are_called():
    """And so the solve is none of the fused engine."""
    module, y0 = Called(), torch.randn(3, 2)
    field = fuse(module)
    with pytest.raises(ValueError, match="callbacks"):
        fastnode.odeint(field, y0, T, engine="fused")
    fastnode.odeint(field, y0, T)
    assert module.nfe > 100
    plain, seen = Net(), []
    field = fuse(plain)
    fastnode.odeint(field, y0, T, engine="fused")
    vars(plain)["callback_accept_step"] = lambda *_: seen.append(0)
    fastnode.odeint(field, y0, T)
    assert seen


def wrong(forward):
    class Wrong(Net):
        pass

    Wrong.forward = forward
    return Wrong()


@pytest.mark.parametrize(
    ("forward", "why"),
    [
        (lambda self, t, y: self.net(y + torch.tensor([t, t])), "value of t or y is not known"),
        (lambda self, t, y: self.net(y) * float(t), r"value of t or y is not known.*float\(t\)"),
        (lambda self, t, y: self.net(y) if y.sum() > 0 else y, "control flow that depends on"),
        (lambda self, t, y: self.net(y[: len(y)]), r"a length that is not known.*shape\[0\]"),
        (lambda self, t, y: torch.stack([self.net(x) for x in y]), "length that is not known"),
        (lambda self, t, y: self.nothing(y), "has no attribute 'nothing'"),
        (lambda self, t, y: {}["a"], "'a'"),
        (lambda self, t: t, r"must take \(t, y\), got \(t\)"),
        (lambda self, t, y, mask: self.net(y), r"must take \(t, y\), got \(t, y, mask\)"),
    ],
)
def test_the_reason_for_a_refusal_is_one_sentence(forward, why):
    with pytest.raises(NotFusable, match=why) as error:
        fuse(wrong(forward))
    text = str(error.value)
    assert "\n" not in text and "__cuda" not in text and "Proxy" not in text
    assert len(text) < 250


def test_the_refused_line_is_named():
    with pytest.raises(NotFusable, match=r"test_fused_field.py:\d+\)") as error:
        fuse(wrong(lambda self, t, y: self.net(y) if t > 0 else y))
    assert "if t > 0" in error.value.operation
