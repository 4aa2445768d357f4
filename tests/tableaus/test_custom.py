"""Methods that the user registers."""

from __future__ import annotations

import math

import pytest
import torch
from fake_cuda_graph import faked
from registered_methods import forgotten_afterwards

import fastnode
from fastnode.tableaus import METHODS
from fastnode.tableaus.custom import stability_length

# E. Fehlberg, NASA TR R-315 (1969): no stage at the end of the step, no dense output.
FEHLBERG45 = {
    "a": [
        [],
        ["1/4"],
        ["3/32", "9/32"],
        ["1932/2197", "-7200/2197", "7296/2197"],
        ["439/216", -8, "3680/513", "-845/4104"],
        ["-8/27", 2, "-3544/2565", "1859/4104", "-11/40"],
    ],
    "b": ["16/135", 0, "6656/12825", "28561/56430", "-9/50", "2/55"],
    "b_hat": ["25/216", 0, "1408/2565", "2197/4104", "-1/5", 0],
    "order": 5,
}
RALSTON = {"a": [[], ["2/3"]], "b": [0.25, 0.75], "order": 2}


@pytest.fixture(scope="module", autouse=True)
def registered():
    with forgotten_afterwards():
        fastnode.register_method("test_fehlberg45", **FEHLBERG45)
        fastnode.register_method("test_ralston", **RALSTON)
        yield


def rotation(t, y):
    return torch.stack([y[..., 1], -y[..., 0]], dim=-1)


Y0 = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
TIMES = torch.tensor([0.0, 0.4, 1.0, 3.0], dtype=torch.float64)
EXACT = torch.stack(
    [torch.stack([t.cos() * Y0[:, 0] + t.sin() * Y0[:, 1],
                  t.cos() * Y0[:, 1] - t.sin() * Y0[:, 0]], dim=1) for t in TIMES]
)  # fmt: skip


@pytest.mark.parametrize("engine", ["reference", "native"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_a_registered_pair_solves_to_the_tolerance(engine, per_sample):
    solution = fastnode.solve(
        rotation, Y0, TIMES, method="test_fehlberg45", rtol=1e-8, atol=1e-8,
        engine=engine, per_sample=per_sample, save="dense",
    )  # fmt: skip
    assert (solution.ys - EXACT).abs().max() < 1e-5  # between steps: a cubic
    assert (solution.ys[-1] - EXACT[-1]).abs().max() < 1e-6
    assert torch.allclose(solution.evaluate(1.0).squeeze(), solution.ys[2])


def test_odeint_and_gradients_know_it():
    y0 = Y0.clone().requires_grad_()
    arguments = {"method": "test_fehlberg45", "rtol": 1e-9, "atol": 1e-9}
    found = [
        torch.autograd.grad(fastnode.odeint(rotation, y0, TIMES, **arguments)[-1, 0, 0], y0)[0],
        torch.autograd.grad(
            fastnode.solve(
                rotation, y0, TIMES, adjoint="checkpoint", adjoint_params=(), **arguments
            ).ys[-1, 0, 0],
            y0,
        )[0],
        torch.autograd.grad(
            fastnode.odeint_adjoint(rotation, y0, TIMES, adjoint_params=(), **arguments)[-1, 0, 0],
            y0,
        )[0],
    ]
    wanted = torch.tensor([[math.cos(3), math.sin(3)], [0, 0]], dtype=torch.float64)
    assert all(torch.allclose(each, wanted, atol=1e-6) for each in found)


@pytest.mark.parametrize("method", ["test_fehlberg45", "test_ralston"])
def test_the_fused_engine_knows_it(method):
    torch.manual_seed(0)
    field = fastnode.nn.MLPField(2, 16, activation="tanh").double()
    options = {"step_size": 0.05} if method == "test_ralston" else None
    with torch.no_grad():
        fused, plain = (
            fastnode.odeint(func, Y0, TIMES[:2], method=method, options=options)
            for func in (field, lambda t, y: field(t, y))
        )
    assert torch.allclose(fused, plain, rtol=1e-12)


@torch.no_grad()
def test_the_graph_engine_takes_its_steps():
    with faked():
        native, graph = (
            fastnode.solve(rotation, Y0, TIMES, method="test_fehlberg45", engine=engine)
            for engine in ("native", "graph")
        )
    assert torch.equal(native.ys, graph.ys) and native.nfe == graph.nfe


def test_fixed_steps_converge_with_the_order():
    errors = [
        fastnode.solve(rotation, Y0, TIMES[[0, 3]], method="test_ralston", steps=n).ys[-1]
        - EXACT[-1]
        for n in (40, 80)
    ]
    coarse, fine = (each.norm().item() for each in errors)
    assert math.log2(coarse / fine) == pytest.approx(2, abs=0.1)
    block = fastnode.nn.ODEBlock(torch.nn.Linear(2, 2), method="test_ralston", autonomous=True)
    assert block(torch.ones(1, 2)).shape == (1, 2)


def test_its_stiffness_is_that_of_its_stability_region():
    for name in ("dopri5", "tsit5", "bosh3"):
        tableau = METHODS[name]
        found = stability_length(tableau.a, tableau.b)
        assert found == pytest.approx(tableau.stability, rel=1e-3)
    # R(z) = 1 + z + z^2 / 2 for every method of two stages and order 2.
    a, b = METHODS["test_ralston"].a, METHODS["test_ralston"].b
    assert stability_length(a, b) == pytest.approx(2)


def test_register_method_refuses_changed_coefficients():
    fastnode.register_method("test_ralston", **RALSTON)
    with pytest.raises(ValueError, match="no other method"):
        fastnode.register_method("test_ralston", [[], ["1/2"]], [0, 1], order=2)
    with pytest.raises(ValueError, match="no other method"):
        fastnode.register_method("dopri5", **RALSTON)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": 3}, "b must have order 3: a condition of order 3 wants"),
        ({"order": 0}, "order must be an integer from 1 to 8"),
        ({"a": [[], []]}, r"a\[1\] must have 1 entries"),
        ({"b": [1]}, "b must have one entry for each of 2 rows of a"),
        ({"b_hat": [1]}, "b_hat must have 2 entries"),
        ({"b_hat": [1, 1]}, "b_hat must have order 1"),
        ({"b_hat": ["1/4", "3/4"]}, "b_hat must differ from b"),
        ({"b": ["1/4", "3/0"]}, r"b\[1\] must be a number such as '3/8'"),
        ({"b": [math.nan, 1]}, r"b\[0\] must be finite"),
    ],
)
def test_wrong_tables_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        fastnode.register_method("test_wrong", **(RALSTON | change))
    assert "test_wrong" not in METHODS


def test_wrong_kinds_are_named():
    with pytest.raises(TypeError, match="name must be a string, got int"):
        fastnode.register_method(3, **RALSTON)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"a\[1\] must be a tuple or a list, got str"):
        fastnode.register_method("test_wrong", [[], "x"], [0, 1], order=2)
    with pytest.raises(TypeError, match=r"b\[0\] must be a number, a Fraction or a string"):
        fastnode.register_method("test_wrong", [[], [1]], [None, 1], order=2)  # pyright: ignore
