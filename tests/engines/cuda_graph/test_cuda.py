"""The graph engine on a GPU: the bits of the native engine, and a host that does not wait."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import fastnode
from fastnode import extension
from fastnode.engines.cuda_graph import plan, program
from fastnode.engines.methods import ADAPTIVE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


class Field(nn.Module):
    def __init__(self, width=64, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2))
        self.to("cuda", dtype)

    def forward(self, t, y):
        return torch.sin(3 * t) * self.net(y) - y


def start(batch=64, dtype=torch.float32):
    return torch.linspace(-1, 2, 2 * batch, device="cuda").reshape(batch, 2).to(dtype)


@pytest.fixture(params=[True, False], ids=["loop", "replays"])
def loops(request, monkeypatch):
    """With conditional nodes and without."""
    plan.clear()
    if request.param and not extension.native().graph_loops():
        pytest.skip("no conditional nodes here")
    if not request.param:
        from fastnode.engines.cuda_graph.runtime import CudaRuntime

        monkeypatch.setattr(CudaRuntime, "loop", lambda *_: None)
    yield request.param
    plan.clear()


def both(field, y0, ts, **options):
    return [
        fastnode.solve(field, y0, ts, engine=engine, **options) for engine in ("native", "graph")
    ]


def assert_same(native, graph, counts=("nfe", "accepted", "rejected", "status")):
    for name in counts:
        assert getattr(native, name) == getattr(graph, name), name
    for name in ("times", "error", "stiffness"):
        one, other = getattr(native.steps, name), getattr(graph.steps, name)
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True, msg=name)
    assert torch.equal(native.ys, graph.ys)


@pytest.mark.parametrize("span", [(0.0, 2.0), (2.0, -0.5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", ADAPTIVE)
@torch.no_grad()
def test_takes_the_steps_of_the_native_engine_bit_for_bit(loops, method, dtype, span):
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
    runs = both(
        Field(dtype=dtype),
        start(dtype=dtype),
        torch.tensor(span),
        method=method,
        rtol=tolerance,
        atol=tolerance,
    )
    assert_same(*runs)


@pytest.mark.parametrize("method", ADAPTIVE)
@torch.no_grad()
def test_outputs_inside_of_steps_are_those_of_the_native_engine(loops, method):
    ts = torch.linspace(0, 2, 23, dtype=torch.float64)
    native, graph = both(Field(), start(), ts, method=method, rtol=1e-4, atol=1e-4)
    counts = ("accepted", "rejected", "status") + (("nfe",) if method != "dopri8" else ())
    assert_same(native, graph, counts)


@pytest.mark.parametrize("batch", [1, 3, 1000, 100_000])
@torch.no_grad()
def test_states_of_any_size_agree_with_the_native_engine(loops, batch):
    assert_same(*both(Field(), start(batch), torch.tensor([0.0, 1.0]), first_step=0.9, rtol=1e-6))


@torch.no_grad()
def test_tuple_states_agree_with_the_native_engine(loops):
    state = (start(5), 10 * start(2).reshape(4))
    native, graph = both(
        lambda t, y: (-y[0] * t, y[1] * y[0].sum()), state, torch.linspace(0, 1, 4).cuda()
    )
    assert native.accepted == graph.accepted
    assert all(torch.equal(a, b) for a, b in zip(native.ys, graph.ys, strict=True))


@torch.no_grad()
def test_a_second_solve_uses_the_first_one_s_graph(loops):
    field = Field()
    for scale in (1.0, 0.5, 2.0):
        field.net[0].weight.mul_(scale)
        assert_same(*both(field, scale * start(), torch.tensor([0.0, scale])))
    assert len(plan._captured) == 1


@torch.no_grad()
def test_full_records_are_emptied_on_the_way(loops, monkeypatch):
    monkeypatch.setattr(program, "MAX_RECORDS", 5)
    for save in ("times", "steps"):
        runs = both(Field(), start(), torch.tensor([0.0, 5.0]), rtol=1e-7, atol=1e-7, save=save)
        assert runs[1].accepted > 20
        assert_same(*runs)
    assert torch.equal(runs[0].steps.states, runs[1].steps.states)


WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")


def calls(run):
    """How often the host waits for the device and launches a graph during ``run``."""
    run()
    torch.cuda.synchronize()
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities) as nothing:
        pass
    with profile(activities=activities) as profiled:
        run()
    waits = [sum(e.name in WAITS for e in p.events()) for p in (profiled, nothing)]
    launches = sum(e.name == "cudaGraphLaunch" for e in profiled.events())
    return waits[0] - waits[1], launches


@torch.no_grad()
def test_the_host_waits_once_for_a_whole_solve(loops):
    if not loops:
        pytest.skip("without conditional nodes the host looks on")
    field, y0, found, steps = Field(), start(), [], []

    def run(end):
        ts = torch.tensor([0.0, end])
        solution = fastnode.solve(field, y0, ts, engine="graph", rtol=1e-6, atol=1e-6)
        steps.append(solution.accepted)

    for end in (1.0, 8.0):
        found.append(calls(lambda end=end: run(end)))
    # For the result, however many steps there are.
    assert found == [(1, 1), (1, 1)]
    assert steps[-1] > steps[0] + 10


@torch.no_grad()
def test_works_on_the_current_stream_and_on_others(loops):
    field, ts = Field(), torch.tensor([0.0, 1.0])
    wanted = fastnode.solve(field, start(), ts, engine="native").ys
    for _ in range(3):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found = fastnode.solve(field, start(), ts, engine="graph").ys
        torch.cuda.current_stream().wait_stream(stream)
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        (lambda t, y: y * y.sum().item(), "waits for the device"),
        (lambda t, y: y if t < 0.5 else -y, "waits for the device"),
        (lambda t, y: y * torch.tensor([1.0, 2.0]).cuda(), "waits for the device"),
        (lambda t, y: nn.functional.dropout(y), "random numbers"),
    ],
    ids=["item", "branch", "copy", "dropout"],
)
@torch.no_grad()
def test_fields_that_cannot_be_captured_are_refused(field, reason):
    with pytest.raises(ValueError, match=f"cannot capture func: it {reason}|{reason}"):
        fastnode.solve(field, start(), torch.tensor([0.0, 1.0]), engine="graph")
    # And the device is as it was.
    assert torch.ones(3, device="cuda").sum().item() == 3


def test_errors_are_those_of_the_native_engine(loops):
    def blows_up(t, y):
        return y * y

    found = []
    for engine in ("native", "graph"):
        with torch.no_grad(), pytest.raises(fastnode.SolverError) as caught:
            fastnode.solve(blows_up, 1 + start().abs(), torch.tensor([0.0, 2.0]), engine=engine)
        found.append((type(caught.value), str(caught.value)))
    assert found[0] == found[1]


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("adjoint", ["checkpoint", fastnode.Revolve(3)], ids=str)
def test_gradients_by_checkpoint_are_those_of_the_native_engine(loops, adjoint, count):
    field, found = Field(dtype=torch.float64), []
    # The second backward pass with two times is a captured one that is used again.
    for engine in ("native", "graph", "graph"):
        y0 = start(dtype=torch.float64).requires_grad_()
        field.zero_grad()
        ts = torch.linspace(0, 1, count)
        solution = fastnode.solve(
            field, y0, ts, engine=engine, adjoint=adjoint, rtol=1e-6, atol=1e-6
        )
        solution.ys.square().sum().backward()
        found.append([solution.ys.detach(), y0.grad, *(p.grad for p in field.parameters())])
    for others in found[1:]:
        assert torch.equal(found[0][0], others[0])
        for one, other in zip(found[0], others, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)
