"""Solves of perceptrons that the fused engine leaves to another one, which gives what it should."""

from __future__ import annotations

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

import fastnode
from fastnode import extension
from fastnode.nn import MLPField

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)
T = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)


@pytest.fixture
def field():
    torch.manual_seed(0)
    return MLPField(2, 8, activation="tanh").double()


def state(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def largest(error):
    return error.abs().max()


@pytest.mark.parametrize(
    "arguments",
    [
        {"rtol": torch.tensor([1e-3, 1e-6])},
        {"method": "explicit_adams", "options": {"step_size": 0.1}},
        {"method": "gl4", "options": {"step_size": 0.1}},
        {"options": {"norm": largest}},
        {"options": {"step_t": torch.tensor([0.5])}},
        {"options": {"jump_t": torch.tensor([0.5])}},
        {"method": "rk4", "options": {"step_size": 0.1, "interp": "cubic"}},
        {"method": "rk4", "options": {"grid_constructor": lambda f, y, t: torch.linspace(0, 1, 8)}},
    ],
)
def test_options_that_it_does_not_know_hold(field, arguments):
    y0 = state(4, 2)
    found = fastnode.odeint(field, y0, T, **arguments)
    wanted = fastnode.odeint(lambda t, y: field(t, y), y0, T, **arguments)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="engine 'fused'"):
        fastnode.odeint(field, y0, T, engine="fused", **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"rtol": -1e-3}, ValueError, "rtol must not be negative"),
        ({"atol": float("nan")}, ValueError, "atol must not be negative or NaN"),
        ({"options": [("first_step", 0.1)]}, TypeError, "options must be a dict, got list"),
        ({"method": "rk4", "options": 0.1}, TypeError, "options must be a dict, got float"),
        ({"t": T.long()}, TypeError, "t must be floating"),
        ({"t": T.long(), "method": "rk4"}, TypeError, "t must be floating"),
        ({"t": [0.0, 1.0], "method": "rk4"}, TypeError, "t must be a tensor, got list"),
    ],
)
def test_wrong_arguments_are_named_as_elsewhere(field, arguments, error, words):
    arguments = {"t": T, **arguments}
    with pytest.raises(error, match=words):
        fastnode.odeint(field, state(4, 2), **arguments)


def test_global_hooks_and_callbacks_are_called(field):
    y0, seen = state(4, 2), []
    handle = register_module_forward_hook(lambda *_: seen.append("hook"))
    try:
        fastnode.odeint(field, y0, T)
    finally:
        handle.remove()
    assert "hook" in seen
    field.callback_step = lambda t, y, h: seen.append("step")
    fastnode.odeint(field, y0, T)
    assert "step" in seen


@pytest.mark.parametrize("place", ["whole", "layer"])
def test_a_layer_that_is_not_what_it_was_is_called(field, place):
    seen = []
    module = field if place == "whole" else field.layers[0]
    module.register_forward_hook(lambda *_: seen.append(0))
    fastnode.odeint(field, state(4, 2), T)
    assert seen


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [((4, 2), {"save": "steps"}), ((4, 2), {"save": "dense"}), ((4, 3, 2), {})],
)
def test_forms_of_samples_that_it_does_not_know(field, shape, arguments):
    arguments = {"rtol": 1e-7, "atol": 1e-7, "per_sample": True, **arguments}
    with torch.no_grad():
        found = fastnode.solve(field, state(*shape), T, **arguments)
        wanted = fastnode.solve(lambda t, y: field(t, y), state(*shape), T, **arguments)
        with pytest.raises(ValueError, match="engine 'fused'"):
            fastnode.solve(field, state(*shape), T, engine="fused", **arguments)
    torch.testing.assert_close(found.ys, wanted.ys, rtol=1e-10, atol=1e-10)
