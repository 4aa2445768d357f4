"""Arguments that are refused before any work, each by its name, what came and what was expected."""

from __future__ import annotations

import math

import pytest
import torch

import fastnode
from fastnode.nn import MLPField
from fastnode.ops import rk_rows, rk_stage
from fastnode.training.config import Config

Y0 = torch.ones(3, 2)
TIMES = torch.tensor([0.0, 1.0])


def never(t, y):
    raise AssertionError("the field was evaluated")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"engine": "quick"}, ValueError, "engine must be one of .*, got 'quick'"),
        ({"engine": "native", "event_fn": never}, ValueError, "engine must be 'auto' with event_"),
        ({"rtol": torch.tensor(True)}, TypeError, "rtol must be real, got torch.bool"),
        ({"atol": 1e-3j}, TypeError, "atol must be real, got torch.complex"),
        ({"options": {"first_step": math.nan}}, ValueError, "first_step must be a number, got NaN"),
        (
            {"method": "scipy_solver", "options": {"min_step": 2.0, "max_step": 1.0}},
            ValueError,
            "0 <= min_step <= max_step, got 2.0 and 1.0",
        ),
    ],
)
def test_odeint_refuses_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        fastnode.odeint(never, Y0, TIMES, **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"on_step": print}, ValueError, "on_step must be None with per_sample=True"),
        ({"rtol": 1e-3j}, TypeError, "rtol must be real, got torch.complex"),
        ({"atol": torch.ones(3, requires_grad=True)}, ValueError, "atol must not require a grad"),
    ],
)
def test_solve_per_sample_refuses_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        fastnode.solve(never, Y0, TIMES, per_sample=True, **arguments)


def test_solve_per_sample_takes_times_as_a_tensor():
    with pytest.raises(TypeError, match="must be a tensor, got list"):
        fastnode.solve(never, Y0, [0.0, 1.0], per_sample=True)  # pyright: ignore


@pytest.mark.parametrize("per_sample", [False, True])
def test_what_the_field_returns_is_on_the_device_of_the_state(per_sample):
    def astray(t, y):
        return torch.empty(y.shape, device="meta")

    with pytest.raises(ValueError, match="must return a tensor on cpu, got meta"):
        fastnode.solve(astray, Y0, TIMES, per_sample=per_sample, engine="reference")


def test_rk_ops_refuse_stages_on_another_device():
    derivative = torch.empty(3, 2, device="meta")
    h = torch.ones(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="must be on the state's device cpu, got meta"):
        rk_stage.rk_stage_reference(Y0, [derivative], [1.0])
    with pytest.raises(ValueError, match="h must be on the state's device cpu, got meta"):
        rk_rows.rk_stage_rows_reference(Y0, [Y0], [1.0], h.to("meta"))
    with pytest.raises(TypeError, match="h must be a tensor, got float"):
        rk_rows.rk_stage_rows_reference(Y0, [Y0], [1.0], 1.0)  # pyright: ignore


def test_controller_refuses_bad_safety():
    for safety in (0.0, -1.0, 1.1, 2.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="safety must satisfy 0 < safety <= 1, got"):
            fastnode.Controller(safety=safety)
    with pytest.raises(ValueError, match="safety must satisfy"):
        fastnode.odeint(
            lambda t, y: -y, torch.ones(2), torch.tensor([0.0, 1.0]), options={"safety": 2.0}
        )


@pytest.mark.parametrize("zero", [0, 0.0, torch.zeros(()), torch.tensor([0.0, 1.0])], ids=str)
def test_tolerances_that_are_both_zero(zero):
    def field(t, y):
        calls.append(t)
        return -y

    calls = []
    y0, ts = torch.ones(1, 2), torch.tensor([0.0, 1.0])
    solves = [
        lambda **options: fastnode.odeint(field, y0, ts, **options),
        lambda **options: fastnode.odeint(fastnode.nn.MLPField(2, 4), y0, ts, **options),
        lambda **options: fastnode.odeint_adjoint(field, y0, ts, adjoint_params=(), **options),
        lambda **options: fastnode.odeint_dense(field, y0, 0.0, 1.0, **options),
        lambda **options: fastnode.solve(field, y0, ts, **options),
    ]
    if torch.as_tensor(zero).numel() == 1:
        solves.append(lambda **options: fastnode.solve(field, y0, ts, per_sample=True, **options))
    for solve in solves:
        with pytest.raises(ValueError, match="rtol and atol must not both be 0"):
            solve(rtol=zero, atol=zero)
    assert not calls
    # Nothing chooses steps by them here.
    fastnode.odeint(field, y0, ts, method="rk4", rtol=zero, atol=zero)


def test_register_method_refuses_too_many_stages():
    rows = [[0.1] * i for i in range(99)]
    with pytest.raises(ValueError, match="a must have 1 to .* rows, got 99"):
        fastnode.register_method("long", order=1, a=rows, b=[0.01] * 99)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"hold_k1": 1}, "hold_k1 must be a bool, got 1"),
        ({"recipe": 7}, "recipe must be a str, got 7"),
        ({"tolerance": "low"}, "tolerance must be a float, got 'low'"),
    ],
)
def test_config_refuses_wrong_types(arguments, words):
    with pytest.raises(TypeError, match=words):
        Config("digits", "node", 10, 8, 1e-3, 5, **arguments)


def test_neural_ode_repr_says_how_it_is_solved():
    node = fastnode.nn.NeuralODE(MLPField(2, 8), method="rk4", rtol=1e-3, atol=1e-4)
    assert "method=rk4, rtol=0.001, atol=0.0001, t=[0.0, 1.0]" in repr(node)
