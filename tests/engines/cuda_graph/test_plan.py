"""Which solves share a captured graph: CUDA's calls replaced."""

from __future__ import annotations

import functools
import gc
from contextlib import contextmanager, nullcontext

import pytest
import torch
from fake_cuda_graph import TS, FakeRuntime, Turning, faked, run

import fastnode
from fastnode import extension
from fastnode.engines.cuda_graph import engine, plan
from fastnode.engines.cuda_graph.program import Program
from fastnode.engines.cuda_graph.runtime import CudaRuntime

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)


@pytest.fixture
def runtimes():
    with faked() as made, torch.no_grad():
        yield made


def same_as_native(field, y0=None, ts=TS, **options):
    y0 = torch.tensor([[1.0, 2.0]]) if y0 is None else y0
    wanted = fastnode.solve(field, y0, ts, engine="native", **options).ys
    return torch.equal(run(field, y0, ts, **options), wanted)


def test_a_second_solve_of_the_same_kind_captures_nothing(runtimes):
    field = Turning()
    for first, last in ((0.0, 1.0), (0.5, -2.0)):
        assert same_as_native(field, torch.rand(3, 2), torch.tensor([first, last]))
    assert len(runtimes) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"y0": torch.ones(2, 2)},
        {"y0": torch.ones(1, 2).double()},
        {"ts": torch.tensor([0.0, 0.5, 1.0])},
        {"method": "dopri5"},
        {"rtol": 1e-5},
        {"controller": "PI"},
        {"max_num_steps": 77},
        {"first_step": 0.1},
        {"save": "steps"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_solve_of_another_kind_has_a_graph_of_its_own(runtimes, change):
    def field(t, y):
        return -y

    run(field)
    assert same_as_native(field, **change)
    assert len(runtimes) == 2


def test_what_is_written_into_a_parameter_is_seen_by_the_graph(runtimes):
    field = Turning()
    run(field)
    field.weight.mul_(3)
    assert same_as_native(field)
    assert len(runtimes) == 1


def test_other_memory_or_another_number_needs_another_graph(runtimes):
    field = Turning()
    run(field)
    kept = field.weight.data
    field.weight.data = 2 * kept
    assert same_as_native(field)
    field.scale = 0.5
    assert same_as_native(field)
    assert len(runtimes) == 3


@pytest.mark.parametrize("how", ["closure", "partial", "method", "default", "global"])
def test_what_functions_hold_is_looked_at_too(runtimes, how, monkeypatch):
    fields = []
    for value in (torch.tensor(1.0), torch.tensor(2.0)):
        if how == "closure":
            field = make_closure(value)
        elif how == "partial":
            field = functools.partial(scaled, scale=value)
        elif how == "method":
            field = Holder(value).field
        elif how == "default":
            field = functools.partial(lambda t, y, scale: scale * y, scale=value)
        else:
            monkeypatch.setitem(globals(), "SCALE", value)
            field = by_global
        fields.append(field)
        assert same_as_native(field)
    assert len(runtimes) == 2


def test_two_methods_of_one_object_have_two_graphs(runtimes):
    holder = Holder(torch.tensor(2.0))
    for _ in range(2):
        assert same_as_native(holder.field) and same_as_native(holder.other)
    assert len(runtimes) == 2


def test_user_objects_are_inspected_but_not_libraries(runtimes):
    class Settings:
        factor = 1.0

    settings, generator = Settings(), torch.utils.data.Dataset()
    settings.factor = 2.0
    generator.calls = 0

    def field(t, y):
        generator.calls += 1
        return settings.factor * y

    assert same_as_native(field)
    settings.factor = 3.0
    assert same_as_native(field)
    assert len(runtimes) == 2


def test_everything_captured_has_run_before(monkeypatch):
    events = []

    def note(kind, name):
        before = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda *x: (events.append(name), before(*x))[1])

    note(Program, "first")
    note(Program, "body")
    note(FakeRuntime, "capture")
    with faked(), torch.no_grad():
        run(Turning())
    # CUDA loads a kernel at its first launch, which a capture may not survive.
    assert events[:4] == ["first", "body", "capture", "capture"]


def test_a_capture_has_a_stream_and_errors_of_its_own(monkeypatch):
    found = {}

    @contextmanager
    def graph(graph, **options):
        found.update(options)
        yield

    device = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda **_: object())
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: ("stream", device))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", graph)
    runtime = object.__new__(CudaRuntime)
    runtime.device, runtime._pool = device, None
    runtime.capture(lambda: None)
    assert found["stream"] == ("stream", device)
    assert found["capture_error_mode"] == "thread_local"


def test_settings_of_precision_by_the_newer_names_are_read(runtimes):
    matmul = torch.backends.cuda.matmul
    field = Turning()
    run(field)
    try:
        matmul.fp32_precision = "tf32"
        assert same_as_native(field)
    finally:
        matmul.fp32_precision = "none"
    # Another setting may be another kernel.
    assert len(runtimes) == 2


def test_clear_lets_go_of_all_graphs(runtimes):
    field = Turning()
    run(field)
    engine.clear()
    run(field)
    assert len(runtimes) == 2


SCALE = torch.tensor(0.0)


def by_global(t, y):
    return SCALE * y


def make_closure(value):
    return lambda t, y: value * y


def scaled(t, y, scale):
    return scale * y


class Holder:
    def __init__(self, value):
        self.value = value

    def field(self, t, y):
        return self.value * y

    def other(self, t, y):
        return -self.value * y


def test_a_graph_goes_with_its_field(runtimes):
    field = Turning()
    run(field)
    assert len(plan._captured) == 1
    del field
    gc.collect()
    assert not plan._captured


def test_no_more_than_so_many_graphs_are_kept(runtimes):
    fields = [Turning() for _ in range(plan.MAX_CAPTURED + 3)]
    for field in fields:
        run(field)
    assert len(plan._captured) == plan.MAX_CAPTURED
    run(fields[-1])
    assert len(runtimes) == len(fields)
    run(fields[0])
    assert len(runtimes) == len(fields) + 1
