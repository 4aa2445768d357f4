"""The C++ loop: the steps of the reference, and no trap in what Python does with its memory."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import threading
import time

import pytest
import torch

import fastnode
from fastnode import engines, extension
from fastnode.controllers import Controller
from fastnode.engines.adaptive import Stop
from fastnode.engines.step import ExplicitSteps
from fastnode.errors import MaxStepsExceeded, NonFiniteState, StepSizeUnderflow
from fastnode.methods import ADAPTIVE
from fastnode.norms import ErrorNorm
from fastnode.problem import Callbacks, as_times, make_problem
from fastnode.tableaus import METHODS

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)


def wave(t, y):
    return torch.sin(3 * t) * y - torch.sin(2 * y)


def stepper(engine, field, y0, *, method="dopri5", span=(0.0, 2.0), tolerance=1e-6, **options):
    problem = make_problem(field, y0, torch.tensor(span, dtype=torch.float64))
    return engines.make_stepper(
        engine,
        problem.field,
        ADAPTIVE[method],
        span[0],
        problem.y0,
        end=span[1],
        controller=options.pop("controller", Controller()),
        norm=ErrorNorm(problem.layout, problem.y0, tolerance, tolerance, options.pop("norm", None)),
        **options,
    )


def record(stepper, end):
    """Everything of each accepted step, as numbers."""
    steps = []
    while stepper.t != end:
        step = stepper.advance()
        inside = step.at(0.3 * step.t + 0.7 * step.t1)
        steps.append((step.t, step.t1, step.error, step.y1.tolist(), inside.tolist()))
    return steps, stepper.rejected


def start(dtype=torch.float64):
    return torch.linspace(-1, 2, 7).to(dtype)


@pytest.mark.parametrize("span", [(0.0, 2.0), (2.0, -0.5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", ADAPTIVE)
def test_takes_the_steps_of_the_reference_bit_for_bit(method, dtype, span):
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-4
    runs = [
        record(
            stepper(e, wave, start(dtype), method=method, span=span, tolerance=tolerance), span[1]
        )
        for e in ("reference", "native")
    ]
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    "options",
    [
        {"first_step": 0.5},
        {"controller": Controller(proportional=0.4, integral=0.3)},
        {"controller": Controller(proportional=0.2, integral=0.3, derivative=0.1)},
        {"controller": Controller(min_step=0.1, max_step=0.2)},
        {"stops": [Stop(0.25), Stop(1.0, True)]},
        {"norm": lambda x: x.abs().max()},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_have_the_effect_that_they_have_in_the_reference(options):
    runs = [
        record(stepper(e, wave, start(), **dict(options)), 2.0) for e in ("reference", "native")
    ]
    assert runs[0] == runs[1]
    if "stops" in options:
        assert {0.25, 1.0} <= {step[1] for step in runs[1][0]}


@pytest.mark.parametrize("perturb", [False, True])
@pytest.mark.parametrize("interp", ["linear", "cubic"])
@pytest.mark.parametrize("method", ["euler", "midpoint", "heun2", "heun3", "rk4"])
def test_fixed_steps_agree_with_the_reference(method, interp, perturb):
    times, steps = torch.tensor([0.0, 0.21, 0.5, 1.0]).double(), ExplicitSteps(METHODS[method])
    grid = as_times(torch.linspace(0, 1, 6).double())
    results = []
    for engine in ("reference", "native"):
        problem = make_problem(wave, start(), times)
        solution = engines.integrate_fixed(
            engine, problem.field, steps, problem.y0, problem.times, grid,
            interp=interp, perturb=perturb,
        )  # fmt: skip
        results.append((solution, problem.field.evaluations))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-14, atol=1e-14)
    assert results[0][1] == results[1][1]


def test_states_of_every_form_agree_with_the_reference():
    complex_state = torch.complex(start(), start().flip(0))
    for state, field in [
        (complex_state, lambda t, y: 1j * t * y),
        ((start(), start().reshape(7, 1)), lambda t, y: (-y[0] * t, y[1] * y[0].sum())),
        (start().reshape(1, 7).expand(2, 7), wave),
        (torch.tensor(1.5).double(), wave),
        (torch.ones(0, 3).double(), wave),
    ]:
        runs = [record(stepper(e, field, state), 2.0) for e in ("reference", "native")]
        assert len(runs[0][0]) == len(runs[1][0])
        for one, other in zip(runs[0][0], runs[1][0], strict=True):
            assert one[:3] == pytest.approx(other[:3], rel=1e-9)
            torch.testing.assert_close(torch.tensor(one[3]), torch.tensor(other[3]))


def solve(field, y0=None, **options):
    y0 = start() if y0 is None else y0
    times = torch.linspace(0, 2, 5, dtype=torch.float64)
    return fastnode.odeint(field, y0, times, rtol=1e-6, atol=1e-6, **options)


def test_field_may_return_its_argument_or_one_buffer_every_time():
    buffer = torch.empty_like(start())
    one, zero = solve(lambda t, y: y), torch.zeros_like(start())
    torch.testing.assert_close(one[-1], start() * torch.e**2, rtol=1e-5, atol=1e-5)

    def in_buffer(t, y):
        return torch.mul(y, torch.cos(t), out=buffer)

    torch.testing.assert_close(solve(in_buffer), solve(lambda t, y: y * torch.cos(t)))
    assert torch.equal(solve(lambda t, y: zero)[-1], start())


@pytest.mark.parametrize("form", ["tensor", "tuple"])
def test_field_may_keep_what_it_is_given(form):
    kept, copies = [], []

    def field(t, y):
        part = y[0] if form == "tuple" else y
        kept.append((t, y, part[1:]))
        copies.append((t.clone(), part.clone()))
        return (wave(t, part),) if form == "tuple" else wave(t, part)

    solve(field, (start(),) if form == "tuple" else start())
    for (t, y, view), (t_then, y_then) in zip(kept, copies, strict=True):
        now = y[0] if form == "tuple" else y
        assert t == t_then and torch.equal(now, y_then) and torch.equal(view, y_then[1:])


def test_field_may_differentiate_by_its_argument_inside_a_solve_without_gradients():
    """As the trace of a continuous normalising flow is computed."""

    def field(t, y):
        with torch.enable_grad():
            y.requires_grad_(True)
            return torch.autograd.grad((y**2).sum() / 2, y, create_graph=True)[0]

    with torch.no_grad():
        found = solve(field)
    assert not found.requires_grad
    torch.testing.assert_close(found[-1], start() * torch.e**2, rtol=1e-5, atol=1e-5)


def test_gradients_agree_with_the_reference(monkeypatch):
    net = torch.nn.Sequential(
        torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
    ).double()
    grads = []
    for _ in range(2):
        y0 = torch.linspace(0, 1, 6, dtype=torch.float64).reshape(2, 3).requires_grad_()
        net.zero_grad()
        solve(lambda t, y: net(y) * t, y0).square().sum().backward()
        grads.append([y0.grad, *(p.grad.clone() for p in net.parameters())])
        monkeypatch.setattr(engines.native, "available", lambda y, times: False)
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_callbacks_are_told_what_the_reference_tells():
    told = []
    for engine in ("reference", "native"):
        seen = []
        callbacks = Callbacks(
            *(lambda t, y, h, n=n, s=seen: s.append((n, t, h, y.tolist())) for n in "sar")
        )
        record(stepper(engine, wave, start(), first_step=2.0, callbacks=callbacks), 2.0)
        told.append(seen)
    assert told[0] == told[1] and {name for name, *_ in told[0]} == set("sar")


def test_exception_at_any_stage_arrives_and_leaves_nothing_behind():
    class Boom(Exception):
        pass

    generator = torch.Generator().manual_seed(0)
    stages = torch.randint(0, 40, (1000,), generator=generator).tolist()

    def failing(stage):
        count = itertools.count()

        def field(t, y):
            if next(count) == stage:
                raise Boom(stage)
            return wave(t, y)

        return field

    def tensors():
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    before = tensors()
    for stage in stages:
        with pytest.raises(Boom, match=str(stage)):
            solve(failing(stage), method="dopri5")
    assert tensors() <= before


def test_memory_is_flat_over_many_solves():
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    y0, t = torch.ones(64), torch.tensor([0.0, 0.1])
    for _ in range(1000):
        fastnode.odeint(wave, y0, t, rtol=1e-3, atol=1e-3)
    gc.collect()
    before = resident()
    for _ in range(10_000):
        fastnode.odeint(wave, y0, t, rtol=1e-3, atol=1e-3)
    gc.collect()
    assert resident() - before < 4 << 20


def test_control_c_ends_a_solve():
    timer = threading.Timer(0.2, signal.raise_signal, (signal.SIGINT,))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        fastnode.odeint(
            torch.Tensor.mul, torch.ones(2), torch.tensor([0.0, 1.0]),
            method="euler", options={"step_size": 1e-8},
        )  # fmt: skip
    timer.join()


def test_other_threads_run_while_large_states_are_combined():
    ran = []
    stop = threading.Event()

    def other():
        while not stop.is_set():
            ran.append(time.perf_counter())
            time.sleep(0)

    thread = threading.Thread(target=other)
    thread.start()
    fastnode.odeint(lambda t, y: -y, torch.ones(1 << 18), torch.tensor([0.0, 1.0]))
    stop.set()
    thread.join()
    assert len(ran) > 10


@pytest.mark.parametrize(
    ("error", "field", "options"),
    [
        (MaxStepsExceeded, wave, {"max_num_steps": 2}),
        (NonFiniteState, lambda t, y: y / (t < 0.5), {}),
        (StepSizeUnderflow, lambda t, y: y**2, {}),
    ],
    ids=["steps", "nan", "underflow"],
)
def test_says_why_it_cannot_go_on_as_the_reference_does(error, field, options):
    messages = []
    for engine in ("reference", "native"):
        with pytest.raises(error) as caught:
            record(stepper(engine, field, start(), **options), 2.0)
        messages.append((str(caught.value), caught.value.time, caught.value.step))
    assert messages[0] == messages[1]


def test_wrong_results_of_the_field_are_refused_with_their_form():
    with pytest.raises(ValueError, match=r"shape \(7,\), got \(6,\)"):
        solve(lambda t, y: y[1:])
    with pytest.raises(TypeError, match="float64, got torch.complex128"):
        solve(lambda t, y: y * 1j)
    with pytest.raises(TypeError, match="must return a tensor, got float"):
        solve(lambda t, y: 1.0)


def test_engine_is_chosen_by_name():
    with pytest.raises(ValueError, match="engine must be one of"):
        engines.is_native("quick", start(), [0.0])
    with pytest.raises(ValueError, match="cannot run this solve"):
        engines.is_native("native", start(), [torch.tensor(0.0, requires_grad=True)])
    assert engines.is_native("auto", start(), [0.0])
    assert not engines.is_native("reference", start(), [0.0])
