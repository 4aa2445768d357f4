from __future__ import annotations

import pytest
import torch
import torchdiffeq
from odeint_cases import grid

import fastnode

METHODS = ["euler", "midpoint", "rk4", "dopri5", "tsit5"]


def decay(t, y):
    return -y


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"func": 3}, TypeError, "func must be callable, got int"),
        ({"y0": [torch.ones(2)]}, TypeError, "y0 must be a tensor or a tuple of tensors, got list"),
        ({"y0": ()}, ValueError, "y0 must hold"),
        ({"y0": (torch.ones(2), 1.0)}, TypeError, r"y0\[1\] must be a tensor, got float"),
        ({"y0": torch.ones(2, dtype=torch.int64)}, TypeError, "y0 must be floating"),
        (
            {"y0": (torch.ones(2), torch.ones(2, device="meta"))},
            TypeError,
            r"y0\[1\] must be on cpu",
        ),
        ({"t": [0.0, 1.0]}, TypeError, "t must be a tensor, got list"),
        ({"t": torch.tensor([0, 1])}, TypeError, "t must be floating, got torch.int64"),
        ({"t": torch.tensor(0.0)}, ValueError, r"t must have shape \[T\]"),
        ({"t": torch.tensor([])}, ValueError, r"t must have shape \[T\]"),
        ({"t": grid(0.0, 1.0, 1.0)}, ValueError, "t must be strictly increasing or decreasing"),
        ({"t": grid(0.0, 2.0, 1.0)}, ValueError, "t must be strictly increasing or decreasing"),
        ({"t": grid(0.0, torch.nan)}, ValueError, "t must be finite"),
        ({"method": "dopri6"}, ValueError, "method must be one of .*dopri5.*, got 'dopri6'"),
        ({"rtol": -1.0}, ValueError, "rtol must not be negative"),
        ({"rtol": "small"}, TypeError, "rtol must be a number or a tensor, got str"),
        ({"atol": torch.ones(3)}, ValueError, "atol must broadcast"),
        ({"atol": torch.tensor(1e-3, requires_grad=True)}, ValueError, "atol must not require"),
        ({"y0": (torch.ones(2),), "rtol": (1e-3, 1e-3)}, ValueError, "rtol must have one entry"),
        ({"options": 3}, TypeError, "options must be a dict"),
        ({"args": 3}, TypeError, "args must be a tuple, got int"),
        ({"options": {"step_t": "soon"}}, TypeError, "step_t must be a tensor of times, got str"),
        ({"options": {"jump_t": grid(torch.nan)}}, ValueError, "jump_t must hold times, got NaN"),
        ({"options": {"dtype": torch.int64}}, TypeError, "dtype must be a floating torch.dtype"),
        ({"options": {"first_step": 0.0}}, ValueError, "first_step must be positive"),
        ({"options": {"max_step": "far"}}, TypeError, "max_step must be a number"),
        ({"options": {"min_step": 2.0, "max_step": 1.0}}, ValueError, "min_step and max_step"),
        ({"options": {"dfactor": 2.0}}, ValueError, "dfactor and ifactor"),
        ({"options": {"norm": 2}}, TypeError, "norm must be callable"),
        ({"method": "rk4", "options": {"step_size": -0.1}}, ValueError, "step_size"),
        ({"method": "rk4", "options": {"interp": "quintic"}}, ValueError, "interp must be"),
        (
            {"method": "rk4", "options": {"step_size": 0.1, "grid_constructor": decay}},
            ValueError,
            "exclude each other",
        ),
        (
            {"method": "rk4", "options": {"grid_constructor": lambda f, y, t: t + 1}},
            ValueError,
            "grid_constructor must return a grid from",
        ),
    ],
    ids=lambda value: None,
)
def test_bad_arguments_are_named_before_the_field_is_called(change, kind, words):
    def untouched(t, y):
        raise AssertionError("func was called")

    arguments = {"func": untouched, "y0": torch.ones(2), "t": grid(0.0, 1.0), **change}
    with pytest.raises(kind, match=words):
        fastnode.odeint(arguments.pop("func"), arguments.pop("y0"), arguments.pop("t"), **arguments)


@pytest.mark.parametrize(
    ("func", "kind", "words"),
    [
        (lambda t, y: y[:1], ValueError, r"func must return the state's shape \(2,\), got \(1,\)"),
        (lambda t, y: y * 1j, TypeError, "func must return the state's dtype torch.float32"),
        (lambda t, y: 1.0, TypeError, "func must return a tensor, got float"),
        (lambda t, y: None, TypeError, "func must return a tensor, got NoneType"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_what_the_field_returns_is_checked(method, func, kind, words):
    with pytest.raises(kind, match=words):
        fastnode.odeint(func, torch.ones(2), grid(0.0, 1.0), method=method)


@pytest.mark.parametrize(
    ("func", "kind", "words"),
    [
        (lambda t, y: y[0], TypeError, "func must return a tuple of 2 tensors as y0, got Tensor"),
        (lambda t, y: y[:1], TypeError, "func must return a tuple of 2 tensors as y0, got 1"),
        (lambda t, y: (y[0], y[0]), ValueError, "func, element 1, must return the state's shape"),
    ],
)
def test_what_the_field_returns_for_a_tuple_is_checked(func, kind, words):
    with pytest.raises(kind, match=words):
        fastnode.odeint(func, (torch.ones(2), torch.ones(3)), grid(0.0, 1.0))


@pytest.mark.parametrize(
    "change",
    [
        {"y0": [torch.ones(2)]},
        {"t": [0.0, 1.0]},
        {"t": torch.tensor(0.0)},
        {"t": grid(0.0, 0.0)},
        {"t": grid(0.0, 2.0, 1.0)},
        {"t": grid(0.0, torch.nan)},
        {"atol": torch.tensor(1e-3, requires_grad=True)},
        {"y0": (torch.ones(2),), "rtol": (1e-3, 1e-3)},
        {"method": "rk4", "options": {"grid_constructor": lambda f, y, t: t + 1}},
        {"options": {"max_num_steps": 2}},
        {"func": lambda t, y: y / (t - t), "options": {"max_num_steps": 99}},
        {"func": lambda t, y: y**2, "t": grid(0.0, 2.0)},
    ],
)
def test_odeint_raises_assertion_errors_as_torchdiffeq(change):
    arguments = {
        "func": lambda t, y: tuple(-part for part in y) if isinstance(y, tuple) else -y,
        "y0": torch.ones(2),
        "t": grid(0.0, 1.0),
        **change,
    }
    for library in (fastnode, torchdiffeq):
        with pytest.raises(AssertionError):
            library.odeint(**arguments)


@pytest.mark.parametrize(
    "change",
    [
        {"t": torch.tensor([0, 1])},
        {"t": torch.tensor([0, 1j])},
        {"method": "odd"},
        {"method": "rk4", "options": {"step_size": 0.1, "grid_constructor": lambda f, y, t: t}},
    ],
)
def test_other_errors_have_the_type_they_have_in_torchdiffeq(change):
    arguments = {"func": decay, "y0": torch.ones(2), "t": grid(0.0, 1.0), **change}
    kinds = []
    for library in (fastnode, torchdiffeq):
        with pytest.raises((TypeError, ValueError)) as caught:
            library.odeint(**arguments)
        kinds.append(caught.type)
    assert kinds[0] is kinds[1]


@pytest.mark.parametrize("method", [["rk4"], {"name": "rk4"}], ids=["list", "dict"])
def test_odeint_names_a_method_that_is_no_string(method):
    with pytest.raises(ValueError, match="method must be one of"):
        fastnode.odeint(decay, torch.ones(2), torch.tensor([0.0, 1.0]), method=method)
