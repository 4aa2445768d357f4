"""Which fields and solves have no captured graph, and what they are told: CUDA's calls replaced."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from fake_cuda_graph import FakeRuntime, Turning, faked, run
from torch import nn

from fastnode import extension
from fastnode.engines.cuda_graph import plan

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)


@pytest.fixture
def runtimes():
    with faked() as made, torch.no_grad():
        yield made


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, t, y):
        self.calls += 1
        return -y


class Normalising(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, t, y):
        self.seen += y[0].detach()
        return -y


class Elsewhere(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = torch.ones(2, device="meta")

    def forward(self, t, y):
        return -y


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        (Counting(), r"changes func\.calls"),
        (Normalising(), r"changes func\.seen"),
        (Elsewhere(), r"holds func\.factor on meta"),
        (nn.Dropout(0.5), "random numbers"),
        (lambda t, y: y.mul_(2), "changes the state"),
    ],
    ids=["counter", "buffer", "device", "dropout", "state"],
)
def test_a_field_that_is_not_pure_is_refused_with_the_reason(runtimes, field, reason):
    func = field if not isinstance(field, nn.Dropout) else lambda t, y: field(y)
    with pytest.raises(ValueError, match=rf"engine 'graph' cannot capture func: it .*{reason}"):
        run(func)


def test_fields_that_synchronise_are_refused(runtimes, monkeypatch):
    @contextmanager
    def forbidding_waits(self):
        yield
        raise RuntimeError("called a synchronizing CUDA operation")

    monkeypatch.setattr(FakeRuntime, "forbidding_waits", forbidding_waits)
    with pytest.raises(ValueError, match=r"cannot capture func: it waits for the device.*\.item"):
        run(Turning())


def test_a_capture_that_fails_is_refused_with_the_reason(runtimes, monkeypatch):
    def capture(self, function):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(FakeRuntime, "capture", capture)
    with pytest.raises(ValueError, match="cannot capture func: .*not permitted when stream is"):
        run(Turning())
    assert not plan._captured


def test_errors_of_the_field_itself_stay_what_they_are(runtimes):
    with pytest.raises(ValueError, match="func must return the state's shape"):
        run(lambda t, y: y[0])

    def broken(t, y):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(broken)


def test_no_solve_within_another_capture(runtimes, monkeypatch):
    monkeypatch.setattr(FakeRuntime, "ready", lambda self: "another CUDA graph is being captured")
    with pytest.raises(ValueError, match="another CUDA graph"):
        run(Turning())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"method": "rk4"}, "no error estimate"),
        ({"per_sample": True}, "per_sample"),
        ({"save": "dense"}, "save='dense'"),
        ({"events": lambda t, y: y[0, 0]}, "events"),
        ({"on_step": print}, "on_step"),
        ({"adjoint": "reversible"}, "adjoint='reversible'"),
        ({"rtol": torch.tensor([1e-3, 1e-4])}, "tolerances that are tensors"),
        ({"y0": torch.ones(1, 2, dtype=torch.complex64)}, "complex64"),
        ({"y0": torch.ones(0, 2)}, "no elements"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_what_the_engine_does_not_know_is_named(runtimes, options, reason):
    with pytest.raises(ValueError, match=f"engine 'graph' cannot run this solve: .*{reason}"):
        run(Turning(), **options)


def test_gradients_by_backprop_are_refused_and_the_way_is_named():
    for field, y0 in (
        (Turning(), torch.ones(1, 2)),
        (scaled_by_two, torch.ones(1, 2).requires_grad_()),
    ):
        with faked(), pytest.raises(ValueError, match="needs a gradient.*adjoint='checkpoint'"):
            run(field, y0)


def scaled_by_two(t, y):
    return 2 * y


def test_a_state_on_the_cpu_is_refused():
    with torch.no_grad(), pytest.raises(ValueError, match="CUDA device, got cpu"):
        run(Turning())


def test_checkpoint_refuses_methods_that_carry_a_stage():
    with faked(), pytest.raises(ValueError, match="fehlberg2"):
        run(Turning(), method="fehlberg2", adjoint="checkpoint")
