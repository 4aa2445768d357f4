"""The C++ loop: the steps of the reference, and no trap in what Python does with its memory."""

from __future__ import annotations

import itertools

import pytest
import torch

import fastnode
from fastnode import extension
from fastnode.control.controllers import Controller
from fastnode.control.options import FixedOptions, Stop
from fastnode.control.request import SolveRequest
from fastnode.engines import select
from fastnode.engines.methods import ADAPTIVE
from fastnode.engines.reference.step import ExplicitSteps
from fastnode.errors import MaxStepsExceeded, NonFiniteState, StepSizeUnderflow
from fastnode.problem.ivp import NO_CALLBACKS, Callbacks, make_problem
from fastnode.tableaus import METHODS

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)


def wave(t, y):
    return torch.sin(3 * t) * y - torch.sin(2 * y)


def stepper(engine, field, y0, *, method="dopri5", span=(0.0, 2.0), tolerance=1e-6, **options):
    problem = make_problem(field, y0, torch.tensor(span, dtype=torch.float64))
    callbacks, stops = options.pop("callbacks", None), options.pop("stops", ())
    options = {"controller": Controller(), "stops": lambda *_: stops, **options}
    request = SolveRequest(method, tolerance, tolerance, engine, **options)
    return select.make_stepper(problem, request, callbacks=callbacks)


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
def test_native_options_match_the_reference(options):
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
    fixed = FixedOptions(0.2, interp=interp, perturb=perturb)
    results = []
    for engine in ("reference", "native"):
        problem = make_problem(wave, start(), times)
        request = SolveRequest(method, engine=engine, fixed=fixed)
        solution = select.integrate_fixed(problem, request, steps, NO_CALLBACKS)
        results.append((solution, problem.field.evaluations))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-14, atol=1e-14)
    assert results[0][1] == results[1][1]


@pytest.mark.parametrize("size", [8191, 16384, 100_001])
def test_fixed_steps_on_several_threads_match_reference(size):
    y0 = torch.linspace(-1, 2, size)
    times = torch.tensor([0.0, 0.5, 1.0])
    ours, theirs = (
        select.integrate_fixed(
            problem,
            SolveRequest("rk4", engine=engine, fixed=FixedOptions()),
            ExplicitSteps(METHODS["rk4"]),
            NO_CALLBACKS,
        )
        for engine in ("native", "reference")
        for problem in [make_problem(wave, y0, times)]
    )
    assert torch.equal(ours, theirs)


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
        monkeypatch.setattr(select.native, "refusal", lambda y, times: "it is off")
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stage", range(1, 14))
def test_solve_is_unchanged_after_a_field_exception(stage):
    calls = itertools.count()

    def interrupted(t, y):
        if next(calls) == stage:
            raise InterruptedError
        return wave(t, y)

    options = {"first_step": 0.5, "tolerance": 1e-4}
    wanted = record(stepper("native", wave, start(), **options), 2.0)
    again = stepper("native", interrupted, start(), **options)
    steps = []
    try:
        while again.t != 2.0:
            steps.append(again.advance().y1)
    except InterruptedError:
        while again.t != 2.0:
            steps.append(again.advance().y1)
    assert [y.tolist() for y in steps] == [step[3] for step in wanted[0]]


def test_callbacks_are_told_what_the_reference_tells():
    seen_by = []
    for engine in ("reference", "native"):
        seen = []
        callbacks = Callbacks(
            *(lambda t, y, h, n=n, s=seen: s.append((n, t, h, y.tolist())) for n in "sar")
        )
        record(stepper(engine, wave, start(), first_step=2.0, callbacks=callbacks), 2.0)
        seen_by.append(seen)
    assert seen_by[0] == seen_by[1] and {name for name, *_ in seen_by[0]} == set("sar")


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
        select.stepping_engine("quick", start(), [0.0])
    with pytest.raises(ValueError, match="cannot run this solve"):
        select.stepping_engine("native", start(), [torch.tensor(0.0, requires_grad=True)])
    assert select.stepping_engine("auto", start(), [0.0]) == "native"
    assert select.stepping_engine("reference", start(), [0.0]) == "reference"
