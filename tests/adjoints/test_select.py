"""Bad choices are named, with what to do instead; the schedule of revolve; modules."""

from __future__ import annotations

import functools

import pytest
import torch

import fastnode
from fastnode.adjoints.discrete.revolve import Keeper, reverse, split
from fastnode.nn import MLPField, NeuralODE


def solve(**options):
    y0 = torch.ones(2, 3, requires_grad=True)
    field = options.pop("func", lambda t, y: -y)
    return fastnode.solve(field, y0, torch.tensor([0.0, 1.0]), **options)


WEIGHT = torch.ones(3, requires_grad=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"adjoint": "backward"}, "adjoint must be one of backprop, checkpoint"),
        ({"adjoint": 3}, "adjoint must be one of"),
        ({"adjoint": "revolve"}, r"fastnode.Revolve\(slots\)"),
        ({"adjoint": "checkpoint"}, "nn.Module, or name them in adjoint_params"),
        ({"adjoint": "checkpoint", "method": "gl4"}, "explicit Runge-Kutta.*backprop"),
        ({"adjoint": "reversible", "method": "explicit_adams"}, "explicit Runge-Kutta"),
        ({"adjoint": "checkpoint", "adjoint_params": [WEIGHT * 2]}, "must be a leaf.*in args"),
        ({"adjoint": "reversible", "adjoint_params": (), "per_sample": True}, "has no per_sample"),
        ({"adjoint": "reversible", "adjoint_params": (), "save": "dense"}, "checkpoint"),
        ({"adjoint": "reversible", "events": lambda t, y: t}, "has no events"),
        ({"adjoint": "continuous", "adjoint_params": (), "save": "steps"}, "has no save"),
    ],
)
def test_bad_choices(options, words):
    with pytest.raises(ValueError, match=words):
        solve(**options)


@pytest.mark.parametrize(("slots", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_bad_slots(slots, error):
    with pytest.raises(error, match="slots must be"):
        fastnode.Revolve(slots)


def test_parameters_that_are_no_tensors():
    with pytest.raises(TypeError, match=r"adjoint_params\[0\] must be a tensor, got int"):
        solve(adjoint="checkpoint", adjoint_params=[1])


@functools.cache
def least(length, free):
    """Steps taken in order to have every state at its turn, by the best of all schedules."""
    if length == 1:
        return 0
    if free == 0:
        return length * (length - 1) // 2
    return min(m + least(length - m, free - 1) + least(m, free) for m in range(1, length))


@pytest.mark.parametrize("free", [1, 2, 3, 4])
def test_split_is_optimal(free):
    for length in range(2, 40):
        m = split(length, free)
        assert m + least(length - m, free - 1) + least(m, free) == least(length, free)


@pytest.mark.parametrize("slots", [1, 2, 3, 7, None])
@pytest.mark.parametrize("steps", [0, 1, 2, 5, 8, 9, 33])
def test_schedule_pulls_each_step_once_and_keeps_few(steps, slots):
    keeper = Keeper(slots)
    for n in range(steps):
        keeper.offer(n, lambda n=n: (n,))
        assert slots is None or len(keeper.kept) <= slots
    pulled = []

    def advance(m, n, state):
        assert state == (m,)
        return (n,)

    def pull(n, state):
        assert state == (n,)
        pulled.append(n)

    reverse({0: (0,), **keeper.kept}, steps, slots, advance, pull)
    assert pulled == list(reversed(range(steps)))


@pytest.mark.parametrize("adjoint", ["checkpoint", fastnode.Revolve(2), "reversible", "continuous"])
def test_neural_ode_trains_with_any_adjoint(adjoint):
    torch.manual_seed(0)
    field = MLPField(3, 8, activation="tanh").double()
    z = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    gradients = []
    for each in ("backprop", adjoint):
        node = NeuralODE(field, rtol=1e-9, atol=1e-9, adjoint=each)
        gradients.append(torch.autograd.grad(node(z).sin().sum(), [z, *field.parameters()]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("adjoint", "method", "words"),
    [
        ("checkpoint", "implicit_adams", "explicit Runge-Kutta.*use adjoint='backprop'"),
        (fastnode.Revolve(2), "gl4", "explicit Runge-Kutta.*use adjoint='backprop'"),
        ("reversible", "explicit_adams", "explicit Runge-Kutta.*use adjoint='backprop'"),
        ("revolve", "dopri5", r"fastnode.Revolve\(slots\)"),
        ("exact", "dopri5", "adjoint must be one of"),
    ],
    ids=str,
)
def test_neural_ode_names_an_adjoint_that_it_cannot_have(adjoint, method, words):
    with pytest.raises(ValueError, match=words):
        NeuralODE(MLPField(3, 8), method, adjoint=adjoint)


def test_odeint_adjoint_refuses_unknown_parameters():
    with pytest.raises(ValueError, match=r"nn.Module where.*adjoint_params=\(\)"):
        fastnode.odeint_adjoint(lambda t, y: -y, torch.ones(2), torch.tensor([0.0, 1.0]))


def test_odeint_adjoint_takes_what_other_operations_made():
    weight = torch.tensor([0.5, 1.0], dtype=torch.float64, requires_grad=True)
    rate, t = 2 * weight, torch.tensor([0.0, 1.0], dtype=torch.float64)
    ys = fastnode.odeint_adjoint(
        lambda t, y: -rate * y, torch.ones(2, dtype=torch.float64), t, adjoint_params=(rate,)
    )
    (found,) = torch.autograd.grad(ys[-1].sum(), weight)
    torch.testing.assert_close(found, -2 * torch.exp(-2 * weight.detach()), rtol=1e-6, atol=0)


def test_neural_ode_names_options_that_it_cannot_take():
    with pytest.raises(ValueError, match="with adjoint 'checkpoint', got norm"):
        NeuralODE(MLPField(3, 8), options={"norm": torch.norm}, adjoint="checkpoint")
