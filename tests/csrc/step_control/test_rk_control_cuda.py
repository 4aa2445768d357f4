"""A solve as a captured graph runs it, by the same kernels, against the C++ loop."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass

import pytest
import torch
from cuda_emulation import COMPILER, DTYPES, library, numbers, pointer
from selection import slow

from fastnode import extension
from fastnode.control.controllers import Controller, find_controller
from fastnode.control.norms import ErrorNorm
from fastnode.engines.methods import ADAPTIVE
from fastnode.engines.native import joint as native
from fastnode.problem.ivp import make_problem

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
compiled = pytest.mark.skipif(not extension.AVAILABLE, reason="C++ extension not built")
DEGREE = 8
PLENTY = 10**6


class Method(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("stages", "fsal", "degree", "order")]
    _fields_ += [(name, ctypes.POINTER(ctypes.c_double)) for name in "abce"]
    _fields_ += [("dense", ctypes.POINTER(ctypes.c_double))]


class Task(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_double) for name in ("t", "direction", "rtol", "atol", "first_step")),
        ("control", ctypes.c_double * 9),
        ("outputs", ctypes.POINTER(ctypes.c_double)),
        ("limits", ctypes.POINTER(ctypes.c_double)),
        *(
            (name, ctypes.c_int64)
            for name in ("output_count", "numel", "max_num_steps", "all_together", "capacity")
        ),
    ]


COUNTS = ("accepted", "rejected", "attempts", "noted", "next", "running", "iterations")


class Found(ctypes.Structure):
    _fields_ = [
        ("outputs", ctypes.c_void_p),
        ("starts", ctypes.c_void_p),
        ("ends", ctypes.POINTER(ctypes.c_double)),
        ("errors", ctypes.POINTER(ctypes.c_double)),
        *((name, ctypes.c_int64) for name in COUNTS),
        ("t", ctypes.c_double),
        ("h", ctypes.c_double),
    ]


@dataclass
class Result:
    ys: torch.Tensor
    starts: torch.Tensor
    ends: list[float]
    errors: list[float]
    found: Found


def method_of(name: str) -> Method:
    tableau = ADAPTIVE[name]
    stages = len(tableau.a)

    def full(weights):
        row = [0.0] * stages
        for i, value in zip(weights.stages, weights.values, strict=True):
            row[i] = value
        return row

    dense = [[0.0] * DEGREE for _ in range(stages)]
    for i, row in tableau.dense_weights:
        dense[i][: len(row)] = row
    return Method(
        stages,
        tableau.fsal,
        max(len(row) for _, row in tableau.dense_weights),
        tableau.order,
        numbers([full(row) for row in tableau.stage_weights]),
        numbers(full(tableau.solution_weights)),
        numbers(tableau.stage_times),
        numbers(full(tableau.error_weights)),
        numbers(dense),
    )


def field(t, y):
    return (t - 1) * y / (1 + torch.arange(y.numel(), dtype=y.dtype))


def solve(
    y0,
    times,
    method="dopri5",
    controller="I",
    *,
    rtol=1e-6,
    atol=1e-8,
    first_step=0.0,
    stops=(),
    max_num_steps=PLENTY,
    all_together=False,
    capacity=1000,
):
    direction = math.copysign(1, times[-1] - times[0])
    ys = torch.full((len(times), y0.numel()), torch.nan, dtype=y0.dtype)
    starts = torch.full((capacity, y0.numel()), torch.nan, dtype=y0.dtype)
    ends, errors = ((ctypes.c_double * capacity)() for _ in range(2))
    control = (ctypes.c_double * 9)(*native.control_numbers(find_controller(controller)))
    limits = [*sorted(stops, key=lambda t: t * direction), times[-1]]
    task = Task(
        times[0],
        direction,
        rtol,
        atol,
        first_step,
        control,
        numbers(times),
        numbers(limits),
        len(times),
        y0.numel(),
        max_num_steps,
        all_together,
        capacity,
    )
    found = Found(pointer(ys), pointer(starts), ends, errors)
    number = DTYPES.index(y0.dtype)
    state = y0.clone()
    ys[0] = y0
    references = [ctypes.byref(each) for each in (method_of(method), task)]
    assert library().solve(number, *references, pointer(state), ctypes.byref(found)) == 0
    return Result(ys, starts, list(ends[: found.noted]), list(errors[: found.noted]), found)


def stepper_for(y0, times, method, controller, rtol=1e-6, atol=1e-8, stops=()):
    problem = make_problem(field, y0, torch.tensor(times, dtype=torch.float64))
    made = native.make_stepper(
        problem.field,
        ADAPTIVE[method],
        times[0],
        problem.y0,
        end=times[-1],
        controller=find_controller(controller),
        norm=ErrorNorm(problem.layout, problem.y0, rtol, atol),
        stops=[(t, False) for t in stops],
    )
    made.record(None)
    return made


@compiled
@pytest.mark.parametrize("times", [[0.0, 0.3, 0.31, 0.32, 3.0], [2.5, -1.0], [0.0, 1.0, 2.0]])
@pytest.mark.parametrize("controller", ["I", "PID", Controller(keeps_accepted=True)], ids=str)
@pytest.mark.parametrize("method", ["dopri5", slow("tsit5"), slow("bosh3"), "adaptive_heun"])
def test_takes_the_steps_of_the_cpp_loop(method, controller, times):
    y0 = torch.linspace(1, 2, 13, dtype=torch.float64)
    rtol = 1e-3 if method == "adaptive_heun" else 1e-6
    stepper = stepper_for(y0, times, method, controller, rtol)
    wanted = stepper.integrate(times, all_together=True)
    result = solve(y0, times, method, controller, rtol=rtol)
    found = result.found
    assert (found.accepted, found.rejected) == (len(stepper.ends), stepper.rejected)
    assert found.next == len(times) and found.iterations == found.accepted + found.rejected + 2
    torch.testing.assert_close(result.ys, wanted, rtol=1e-9, atol=1e-12)
    # Sums in another order show most in the small difference that is the error.
    for numbers_found, numbers_wanted in (
        (result.ends, stepper.ends),
        (result.errors, stepper.errors),
    ):
        torch.testing.assert_close(
            *(torch.tensor(x, dtype=torch.float64) for x in (numbers_found, numbers_wanted)),
            rtol=1e-5,
            atol=1e-8,
        )
    assert found.t == result.ends[-1] == times[-1]
    assert torch.equal(result.starts[0], y0)


@compiled
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_more_elements_than_one_block(dtype):
    y0, times = torch.linspace(1, 2, 2500).to(dtype), [0.0, 0.4, 2.0]
    rtol = 1e-3 if dtype in (torch.bfloat16, torch.float16) else 1e-6
    result = solve(y0, times, rtol=rtol, atol=rtol)
    assert result.found.next == 3
    exact = y0.double() * torch.exp(
        torch.tensor([t * t / 2 - t for t in times], dtype=torch.float64)[:, None]
        / (1 + torch.arange(2500))
    )
    # The norm is a mean: one element of so many may have fifty times the tolerance.
    near = 50 * rtol + 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(result.ys.double(), exact, rtol=near, atol=near)


@compiled
def test_steps_end_at_stops():
    y0, times, stops = torch.ones(3, dtype=torch.float64), [3.0, 0.0], [2.2, 0.7]
    result = solve(y0, times, stops=stops)
    stepper = stepper_for(y0, times, "dopri5", "I", stops=sorted(stops, reverse=True))
    stepper.integrate(times, all_together=True)
    assert set(stops) < set(result.ends)
    assert len(result.ends) == len(stepper.ends)


def test_rejected_steps_continue_at_same_place():
    result = solve(torch.ones(2, dtype=torch.float64), [0.0, 1.0], first_step=50.0, rtol=1e-10)
    assert result.found.rejected > 0
    assert result.found.accepted == len(result.ends)
    exact = torch.tensor([-0.5, -0.25]).double().exp()
    torch.testing.assert_close(result.ys[1], exact, rtol=1e-7, atol=0)


def test_stops_at_max_steps_and_at_nonfinite_values():
    y0 = torch.ones(2, dtype=torch.float64)
    times = [0.0, 1.0, 30.0]
    few = solve(y0, times, max_num_steps=5, first_step=1e-3, all_together=True)
    assert few.found.running == 0 and few.found.attempts == 5 and few.found.next < 3
    assert few.ys[-1].isnan().all() and few.found.t == few.ends[-1]
    # A number that is too small for all together is enough from one output to the next.
    per_output = {"times": [i / 4 for i in range(9)], "max_num_steps": 4, "first_step": 0.1}
    assert solve(y0, **per_output).found.next == 9
    assert solve(y0, **per_output, all_together=True).found.next < 9

    for bad in (torch.nan, torch.inf):
        broken = solve(torch.tensor([1.0, bad], dtype=torch.float64), times)
        assert broken.found.next == 1 and math.isnan(broken.found.h)
        given = solve(torch.tensor([1.0, bad], dtype=torch.float64), times, first_step=0.1)
        assert given.found.next == 1 and given.found.accepted == 0 and given.found.rejected > 1


def test_waits_when_there_is_no_room_for_more_steps():
    y0 = torch.ones(2, dtype=torch.float64)
    short = solve(y0, [0.0, 2.0], capacity=3)
    whole = solve(y0, [0.0, 2.0])
    assert short.found.noted == 3 < whole.found.noted and short.found.running == 0
    assert short.ends == whole.ends[:3] and short.found.next == 1
    assert torch.equal(short.starts, whole.starts[:3])


def test_portable_powers_are_powers():
    function = library().power
    function.restype, function.argtypes = ctypes.c_double, [ctypes.c_double] * 2
    generator = torch.Generator().manual_seed(0)
    for scale in (300.0, 12.0, 0.5):
        for u, y in torch.rand(2000, 2, generator=generator, dtype=torch.float64).tolist():
            x, y = 10 ** (scale * (2 * u - 1)), 2 * y - 1
            assert function(x, y) == pytest.approx(x**y, rel=1e-13)
    assert function(1.0, 0.3) == 1 and function(0.25, 0.5) == 0.5 and function(5e-324, 0.0) == 1
    assert function(1e300, -1.0) == pytest.approx(1e-300) and function(1e-320, -1.0) == math.inf


@pytest.mark.parametrize("controller", ["I", "PI", "PID", Controller(min_step=1e-3)], ids=str)
def test_decisions_are_those_of_the_controller(controller):
    controller, order, count = find_controller(controller), 5, 400
    generator = torch.Generator().manual_seed(0)
    errors = (10 ** (4 * torch.rand(count, generator=generator, dtype=torch.float64) - 3)).tolist()
    errors[5], errors[17], errors[18] = 0.0, math.nan, math.inf
    wanted, accepted, h, history = [], 0, 0.1, (1.0, 1.0)
    for error in errors:
        following = controller.next_step(h, error, history, order)
        if controller.accepts(h, error):
            accepted, history = accepted + 1, (error, history[0])
        h = following
        wanted.append(h)
    function = library().decide
    function.restype = ctypes.c_int64
    for portable in (0, 1):
        sizes = (ctypes.c_double * count)()
        found = function(
            numbers(native.control_numbers(controller)),
            order,
            ctypes.c_double(0.1),
            numbers(errors),
            ctypes.c_int64(count),
            portable,
            sizes,
        )
        assert found == accepted
        if portable:
            assert list(sizes) == pytest.approx(wanted, rel=1e-9)
        else:
            assert list(sizes) == wanted
