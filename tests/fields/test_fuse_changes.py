"""A module that becomes something else after fastnode.fuse has read it."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastnode
from fastnode import NotFusable, extension, fuse
from fastnode.fields import fuse_reading

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)
T = torch.tensor([0.0, 1.0])
SIGN = 1.0


class Net(nn.Module):
    scaled = False

    def __init__(self, activation=None):
        super().__init__()
        torch.manual_seed(0)
        act = nn.Tanh() if activation is None else activation
        self.net = nn.Sequential(nn.Linear(2, 8), act, nn.Linear(8, 2))
        self.flag, self._hidden, self.calls = False, False, 0
        self.config = SimpleNamespace(sign=1.0)
        self.table, self.factors = [1.0], {"out": 1.0}
        self.activate = torch.tanh
        self.level: torch.Tensor
        self.register_buffer("level", torch.zeros(()))

    def forward(self, t, y):
        return self.net(y)


class Trained(Net):
    def forward(self, t, y):
        return -self.net(y) if self.training else self.net(y)


class Flagged(Net):
    def forward(self, t, y):
        return -self.net(y) if self.flag or self._hidden or self.scaled else self.net(y)


class Configured(Net):
    def forward(self, t, y):
        return self.config.sign * self.table[-1] * self.factors["out"] * self.net(y)


class Global(Net):
    def forward(self, t, y):
        return self.signed(self.net(y))

    def signed(self, y):
        return SIGN * y


class Closing(Net):
    def __init__(self):
        super().__init__()
        sign = 1.0

        def change():
            nonlocal sign
            sign = -1.0

        self.change, self.signed = change, lambda y: sign * y

    def forward(self, t, y):
        return self.signed(self.net(y))


class Buffered(Net):
    def forward(self, t, y):
        return -self.net(y) if torch.gt(self.level, 0) else self.net(y)


class Function(Net):
    def forward(self, t, y):
        return self.net[2](self.activate(self.net[0](y)))


class Dropping(Net):
    def forward(self, t, y):
        return self.net[2](F.dropout(torch.tanh(self.net[0](y)), 0.5, self.training))


def negative(self, t, y):
    return -self.net(y)


#: (module, what changes it into another perceptron)
CHANGES = {
    "training": (Trained, lambda m: m.eval()),
    "attribute": (Flagged, lambda m: setattr(m, "flag", True)),
    "private attribute": (Flagged, lambda m: setattr(m, "_hidden", True)),
    "attribute over that of the class": (Flagged, lambda m: setattr(m, "scaled", True)),
    "object": (Configured, lambda m: setattr(m.config, "sign", -1.0)),
    "list": (Configured, lambda m: m.table.append(2.0)),
    "entry of a list": (Configured, lambda m: m.table.__setitem__(0, 2.0)),
    "dict": (Configured, lambda m: m.factors.update(out=0.5)),
    "closure": (Closing, lambda m: m.change()),
    "buffer": (Buffered, lambda m: m.level.add_(1)),
    "function": (Function, lambda m: setattr(m, "activate", torch.sigmoid)),
    "option of an activation": (
        lambda: Net(nn.Softplus()),
        lambda m: setattr(m.net[1], "beta", 2.0),
    ),
    "activation": (Net, lambda m: m.net.__setitem__(1, nn.ReLU())),
    "layer": (Net, lambda m: m.net.append(nn.Tanh())),
}


def close(field, module, y0, **options):
    found = fastnode.odeint(field, y0, T, rtol=1e-6, atol=1e-6, **options)
    plain = fastnode.odeint(lambda t, y: module(t, y), y0, T, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
    return found


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen_by_the_next_solve(change):
    make, alter = CHANGES[change]
    module, y0 = make(), torch.randn(3, 2)
    field = fuse(module)
    before = close(field, module, y0, engine="fused")
    alter(module)
    after = close(field, module, y0, engine="fused")
    assert not torch.allclose(before, after, atol=1e-3)


def test_a_change_of_a_global_variable_or_class_is_seen(monkeypatch):
    y0 = torch.randn(3, 2)
    for module, target, name, value in (
        (Global(), globals(), "SIGN", -1.0),
        (Flagged(), Flagged, "scaled", True),
        (Net(), Net, "forward", negative),
        (Global(), Global, "signed", lambda self, y: 2 * y),
    ):
        field = fuse(module)
        before = close(field, module, y0)
        with monkeypatch.context() as patch:
            set_ = patch.setitem if isinstance(target, dict) else patch.setattr
            set_(target, name, value)  # pyright: ignore[reportArgumentType]
            after = close(field, module, y0, engine="fused")
        assert not torch.allclose(before, after, atol=1e-3)
        assert torch.equal(close(field, module, y0), before)


REFUSED = {
    "dropout in training": (lambda: Dropping().eval(), lambda m: m.train(), "dropout in training"),
    "option": (lambda: Net(nn.ELU()), lambda m: setattr(m.net[1], "alpha", 2.0), "alpha=2.0"),
    "layer": (Net, lambda m: m.net.append(nn.LayerNorm(2)), "LayerNorm"),
    "activation": (Net, lambda m: m.net.__setitem__(1, nn.Hardtanh()), "Hardtanh"),
}


@pytest.mark.parametrize("change", REFUSED)
def test_a_change_that_cannot_be_fused_runs_elsewhere(change):
    make, alter, why = REFUSED[change]
    module, y0 = make(), torch.randn(3, 2)
    field = fuse(module)
    assert field.why_not_fused is None
    alter(module)
    torch.manual_seed(1)
    found = fastnode.odeint(field, y0, T, method="rk4")
    torch.manual_seed(1)
    assert torch.equal(found, fastnode.odeint(lambda t, y: module(t, y), y0, T, method="rk4"))
    assert why in field.why_not_fused
    with pytest.raises(ValueError, match=why):
        fastnode.odeint(field, y0, T, engine="fused")
    with pytest.raises(ValueError, match=why):
        fastnode.solve(field, y0, T, engine="fused", per_sample=True)


def test_a_change_that_is_undone_is_fused_again():
    module, y0 = Dropping().eval(), torch.randn(3, 2)
    field = fuse(module)
    before = close(field, module, y0, engine="fused")
    for _ in range(2):
        with pytest.raises(ValueError, match="dropout in training mode"):
            fastnode.odeint(field.train(), y0, T, engine="fused")
        assert torch.equal(close(field.eval(), module, y0, engine="fused"), before)


def test_a_change_while_there_is_a_hook_is_seen_after_it():
    module, y0 = Trained(), torch.randn(3, 2)
    field = fuse(module)
    handle = module.net.register_forward_hook(lambda module, args, out: out.clone())
    close(field.eval(), module, y0)
    handle.remove()
    close(field, module, y0, engine="fused")


@pytest.fixture
def traces(monkeypatch):
    """One entry for each trace."""
    seen = []
    read = fuse_reading.read_net
    monkeypatch.setattr(fuse_reading, "read_net", lambda module: seen.append(0) or read(module))
    return seen


class Counting(Net):
    def __init__(self):
        super().__init__()
        self.times, self.nfe = [], 0
        self.register_buffer("evaluations", torch.zeros(()))

    def forward(self, t, y):
        self.nfe += 1
        self.last = t
        self.times.append(t)
        self.evaluations += 1
        return self.net(y)


def test_what_forward_changes_itself_is_put_back_and_not_watched(traces):
    module, y0 = Counting(), torch.randn(3, 2)
    field = fuse(module)
    assert module.nfe == 0 and module.times == [] and "last" not in vars(module)
    count = len(traces)
    close(field, module, y0, engine="fused")
    # Calls of the module by others, which count.
    fastnode.odeint(field, y0, T, engine="native")
    assert module.nfe > 0 and len(module.times) == module.nfe
    close(field, module, y0, engine="fused")
    module.nfe = 0
    close(field, module, y0, engine="fused")
    assert len(traces) <= count + 2
    count = len(traces)
    for _ in range(3):
        module.nfe = 0
        module(T[0], y0)
        close(field, module, y0, engine="fused")
    assert len(traces) == count


class Alternating(Net):
    def forward(self, t, y):
        self.calls += 1
        return self.net(y) if self.calls % 2 else -self.net(y)


def test_a_forward_that_depends_on_what_it_changes_is_refused():
    with pytest.raises(NotFusable, match="changes what it does from call to call"):
        fuse(Alternating())


def test_training_does_not_cost_a_trace(traces):
    module, y0 = Configured(), torch.randn(3, 2)
    field = fuse(module)
    optimizer = torch.optim.Adam(field.parameters())
    del traces[:]
    for _ in range(3):
        optimizer.zero_grad()
        fastnode.odeint(field, y0, T)[-1].sum().backward()
        optimizer.step()
    module.net[0].weight = nn.Parameter(torch.randn(8, 2))
    close(field, module, y0, engine="fused")
    assert not traces


class NoGrad(Net):
    def forward(self, t, y):
        with torch.no_grad():
            hidden = torch.tanh(self.net[0](y))
        return self.net[2](hidden)


class Decorated(Net):
    @torch.no_grad()
    def forward(self, t, y):
        return self.net(y)


class Cast(Net):
    def forward(self, t, y):
        with torch.autocast("cpu", torch.bfloat16):
            return self.net(y)


class GradInTraining(Net):
    def forward(self, t, y):
        with torch.set_grad_enabled(self.training):
            return self.net(y)


@pytest.mark.parametrize("kind", [NoGrad, Decorated, Cast])
def test_operations_in_another_mode_are_refused(kind):
    with pytest.raises(NotFusable, match="under torch.no_grad or torch.autocast: "):
        fuse(kind())
    with torch.no_grad(), pytest.raises(NotFusable, match="under torch.no_grad"):
        fuse(kind())


def test_a_mode_set_later_is_seen():
    module, y0 = GradInTraining(), torch.randn(3, 2)
    field = fuse(module)
    assert fastnode.odeint(field, y0, T, engine="fused").requires_grad
    field.eval()
    assert not fastnode.odeint(field, y0, T).requires_grad
    with torch.no_grad():
        fuse(Net())


@pytest.mark.parametrize("reader", ["C++", "Python"])
@pytest.mark.parametrize("change", CHANGES)
def test_both_readers_see_every_change(change, reader, monkeypatch):
    make, alter = CHANGES[change]
    module = make()
    field = fuse(module)
    if reader == "Python":
        monkeypatch.setattr(extension, "AVAILABLE", False)
    assert not field._has_changed()
    alter(module)
    assert field._has_changed()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_read_anew(copied):
    module, y0 = Trained(), torch.randn(3, 2)
    field = fuse(module)
    other = copied(field)
    other.module.net[0].weight.data.mul_(2)
    close(other, other.module, y0, engine="fused")
    close(other.eval(), other.module, y0, engine="fused")
    close(field, module, y0, engine="fused")
    assert module.training


@pytest.mark.parametrize(
    "change",
    [
        "training",
        pytest.param("attribute", marks=pytest.mark.slow),
        pytest.param("activation", marks=pytest.mark.slow),
        pytest.param("layer", marks=pytest.mark.slow),
    ],
)
def test_compiled_solves_see_changes(change):
    torch.compiler.reset()
    make, alter = CHANGES[change]
    module, y0 = make(), torch.randn(3, 2)
    field = fuse(module)
    solve = torch.compile(lambda y: fastnode.odeint(field, y, T, method="rk4"), backend="eager")
    torch.testing.assert_close(solve(y0), fastnode.odeint(module, y0, T, method="rk4"))
    alter(module)
    plain = fastnode.odeint(lambda t, y: module(t, y), y0, T, method="rk4")
    torch.testing.assert_close(solve(y0), plain)
