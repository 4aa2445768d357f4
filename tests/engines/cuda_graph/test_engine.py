"""The graph engine on the CPU, its few CUDA calls replaced: steps, numbers and errors of native."""

from __future__ import annotations

import pytest
import torch
from fake_cuda_graph import faked
from torch import nn

import fastnode
from fastnode import extension
from fastnode.control.controllers import Controller
from fastnode.engines.cuda_graph import program
from fastnode.engines.methods import ADAPTIVE
from fastnode.errors import MaxStepsExceeded, NonFiniteState, StepSizeUnderflow

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)


@pytest.fixture(params=[True, False], ids=["loop", "replays"])
def runtimes(request):
    with faked(loops=request.param) as made, torch.no_grad():
        yield made


def wave(t, y):
    return torch.sin(3 * t) * y - torch.sin(2 * y)


def start(dtype=torch.float64, size=7):
    return torch.linspace(-1, 2, size).to(dtype)


def both(field, y0, ts, **options):
    return [
        fastnode.solve(field, y0, ts, engine=engine, **options) for engine in ("native", "graph")
    ]


def assert_same(native, graph, counts=("nfe", "accepted", "rejected", "status")):
    for name in counts:
        assert getattr(native, name) == getattr(graph, name), name
    pairs = [
        (getattr(x.steps, n), n) for n in ("times", "error", "stiffness") for x in (native, graph)
    ]
    for (one, name), (other, _) in zip(pairs[::2], pairs[1::2], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True, msg=name)
    ys = zip(*(x.ys if isinstance(x.ys, tuple) else (x.ys,) for x in (native, graph)), strict=True)
    for one, other in ys:
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("span", [(0.0, 2.0), (2.0, -0.5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", ADAPTIVE)
def test_takes_the_steps_of_the_native_engine_bit_for_bit(runtimes, method, dtype, span):
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
    runs = both(
        wave, start(dtype), torch.tensor(span), method=method, rtol=tolerance, atol=tolerance
    )
    assert_same(*runs)
    assert runs[0].accepted > 1


@pytest.mark.parametrize("span", [(0.0, 2.0), (2.0, -0.5)], ids=str)
@pytest.mark.parametrize("method", ADAPTIVE)
def test_outputs_inside_of_steps_are_those_of_the_native_engine(runtimes, method, span):
    ts = torch.linspace(*span, 23, dtype=torch.float64)
    native, graph = both(wave, start(), ts, method=method, rtol=1e-4, atol=1e-4)
    # Further stages of dense output are part of every captured step.
    counts = ("accepted", "rejected", "status") + (("nfe",) if method != "dopri8" else ())
    assert_same(native, graph, counts)


@pytest.mark.parametrize(
    "options",
    [
        {"first_step": 0.5},
        {"controller": "PI"},
        {"controller": Controller(proportional=0.2, integral=0.3, derivative=0.1)},
        {"min_step": 0.1, "max_step": 0.2},
        {"method": "dopri5", "rtol": 1e-9, "atol": 1e-9},
        {"save": "steps"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_cuda_graph_options_match_the_native_engine(runtimes, options):
    native, graph = both(wave, start(), torch.tensor([0.0, 1.0, 2.0]), **options)
    assert_same(native, graph)
    if "save" in options:
        assert torch.equal(native.steps.states, graph.steps.states)


@pytest.mark.parametrize("options", [None, {"first_step": 0.1, "max_num_steps": 300}], ids=str)
@pytest.mark.parametrize("method", ["dopri5", "tsit5", "adaptive_heun"])
def test_odeint_gives_the_bits_of_the_native_engine(runtimes, method, options):
    ts = torch.linspace(2, -1, 9)
    native, graph = (
        fastnode.odeint(
            wave, start(), ts, rtol=1e-4, atol=1e-4, method=method, options=options, engine=engine
        )
        for engine in ("native", "graph")
    )
    assert torch.equal(native, graph)


def test_odeint_counts_steps_between_outputs(runtimes):
    options = {"max_num_steps": 12}
    for count, fails in ((2, True), (9, False)):
        for engine in ("native", "graph"):
            try:
                ts = torch.linspace(0, 3, count)
                fastnode.odeint(wave, start(), ts, options=options, engine=engine, rtol=1e-6)
                failed = False
            except MaxStepsExceeded:
                failed = True
            assert failed == fails


def test_rejected_steps_continue_at_the_same_place(runtimes):
    native, graph = both(wave, start(), torch.tensor([0.0, 3.0]), first_step=2.9, rtol=1e-6)
    assert graph.rejected > 0
    assert_same(native, graph)


def test_a_tuple_state_is_measured_part_by_part(runtimes):
    state = (start(), 10 * start(size=4).reshape(2, 2))
    ts = torch.linspace(0, 1, 4)
    native, graph = both(
        lambda t, y: (-y[0] * t, y[1] * y[0].sum()), state, ts, rtol=(1e-3, 1e-6), atol=1e-8
    )
    assert_same(native, graph)


def test_a_scalar_state_and_one_that_is_not_contiguous(runtimes):
    for state in (torch.tensor(1.5).double(), start().reshape(1, 7).expand(2, 7)):
        assert_same(*both(wave, state, torch.tensor([0.0, 0.4, 1.0])))


def test_field_may_return_its_argument_or_one_buffer(runtimes):
    for field in (lambda t, y: y, Scratch()):
        native, graph = both(field, start(), torch.tensor([0.0, 0.3, 1.0]))
        assert_same(native, graph)


@pytest.mark.parametrize("throw", [True, False])
def test_too_many_steps_are_the_error_that_they_are_elsewhere(runtimes, throw):
    def run(engine):
        ts = torch.tensor([0.0, 0.1, 5.0])
        return fastnode.solve(
            wave, start(), ts, engine=engine, rtol=1e-9, atol=1e-9, max_num_steps=9, throw=throw
        )

    if throw:
        errors = []
        for engine in ("native", "graph"):
            with pytest.raises(MaxStepsExceeded) as caught:
                run(engine)
            errors.append((str(caught.value), caught.value.time, caught.value.step))
        assert errors[0] == errors[1]
    else:
        native, graph = run("native"), run("graph")
        assert graph.status == "MaxStepsExceeded" and graph.ys[-1].isnan().all()
        assert_same(native, graph)


@pytest.mark.parametrize(
    ("field", "error"),
    [
        (lambda t, y: y / (y - y), NonFiniteState),
        (lambda t, y: torch.where(t < 0.5, y, torch.nan), NonFiniteState),
        (lambda t, y: y * y, StepSizeUnderflow),
    ],
    ids=["at the start", "later", "blows up"],
)
def test_cuda_graph_errors_match_the_native_engine(runtimes, field, error):
    errors = []
    for engine in ("native", "graph"):
        with pytest.raises(error) as caught:
            fastnode.solve(field, 1 + start().abs(), torch.tensor([0.0, 2.0]), engine=engine)
        errors.append((str(caught.value), caught.value.time, caught.value.step))
    assert errors[0] == errors[1]


def test_full_records_are_emptied_on_the_way(runtimes, monkeypatch):
    ts = torch.tensor([0.0, 0.5, 3.0])
    options = {"rtol": 1e-8, "atol": 1e-8}
    monkeypatch.setattr(program, "MAX_RECORDS", 5)
    for save in ("times", "steps"):
        native, graph = both(wave, start(), ts, save=save, **options)
        assert graph.accepted > 40
        assert_same(native, graph)
    assert torch.equal(native.steps.states, graph.steps.states)


def test_arguments_are_given_anew_to_each_solve(runtimes):
    def field(t, y, scale, power):
        return -scale * y**power

    for scale in (0.5, 2.0):
        args = (torch.tensor(scale).double(), 2)
        assert_same(*both(field, start().abs(), torch.tensor([0.0, 1.0]), args=args))
    assert len(runtimes) == 1
    with pytest.raises(TypeError, match="args"):
        fastnode.solve(field, start(), torch.tensor([0.0, 1.0]), args=([1],), engine="graph")


def test_replays_end_soon_after_the_solve(request):
    with faked(loops=False) as made, torch.no_grad():
        solution = fastnode.solve(wave, start(), torch.tensor([0.0, 2.0]), engine="graph")
    taken = solution.accepted + solution.rejected
    needed = -(-taken // program.STEPS)
    # One for the beginning, and one that ran while the host read that there was no more to do.
    assert made[0].replays <= 1 + needed + 1
    assert made[0].peeks == made[0].replays - 1


def test_a_loop_is_one_launch():
    with faked() as made, torch.no_grad():
        fastnode.solve(wave, start(), torch.tensor([0.0, 2.0]), engine="graph")
    assert (made[0].launches, made[0].replays, made[0].peeks) == (1, 0, 0)


@pytest.mark.parametrize("adjoint", ["checkpoint", fastnode.Revolve(3)], ids=str)
@pytest.mark.parametrize("loops", [True, False])
def test_gradients_by_checkpoint_are_those_of_the_native_engine(loops, adjoint):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 7)).double()
    field = Timeless(net)
    found = []
    for engine in ("native", "graph"):
        y0 = start().requires_grad_()
        field.zero_grad()
        with faked(loops):
            ts = torch.linspace(0, 1, 4)
            solution = fastnode.solve(
                field, y0, ts, engine=engine, adjoint=adjoint, rtol=1e-6, atol=1e-6
            )
        solution.ys.square().sum().backward()
        found.append([solution.ys.detach(), y0.grad, *(p.grad for p in net.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-15)
    assert torch.equal(found[0][0], found[1][0])


class Scratch(nn.Module):
    def __init__(self):
        super().__init__()
        self._out = torch.empty(7, dtype=torch.float64)

    def forward(self, t, y):
        return torch.mul(y, -2.0, out=self._out)


class Timeless(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, t, y):
        return self.net(y)
