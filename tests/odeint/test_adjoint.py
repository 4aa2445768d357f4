from __future__ import annotations

import warnings

import pytest
import torch
import torchdiffeq

import fastnode

LIBRARIES = [fastnode, torchdiffeq]
T = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
Y0 = torch.tensor([1.0, -0.3], dtype=torch.float64)


class Field(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.used = torch.nn.Linear(2, 2, dtype=torch.float64)
        self.unused = torch.nn.Linear(2, 2, dtype=torch.float64)

    def forward(self, t, y):
        return torch.tanh(self.used(y)) * torch.cos(t)


def decay(t, y):
    return -y


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_values_and_gradients_agree_with_torchdiffeq(method):
    field, results = Field(), []
    options = {"options": {"step_size": 0.01}} if method == "rk4" else {}
    for library in LIBRARIES:
        y0, t = Y0.clone().requires_grad_(), T.clone().requires_grad_()
        y = library.odeint_adjoint(
            field, y0, t, method=method, rtol=1e-9, atol=1e-9, adjoint_rtol=1e-9, **options
        )
        inputs = (y0, t, *field.parameters())
        results.append((y, *torch.autograd.grad(y[-1].square().sum(), inputs)))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("library", LIBRARIES)
def test_parameters_without_influence_have_a_gradient_of_zero(library):
    field = Field()
    y = library.odeint_adjoint(field, Y0, T)
    y.sum().backward()
    assert field.used.weight.grad.any()
    assert torch.equal(field.unused.weight.grad, torch.zeros(2, 2).double())


def test_each_part_of_a_tuple_state_reaches_every_parameter():
    extra = torch.ones(3, requires_grad=True)
    _, second = fastnode.odeint_adjoint(
        lambda t, y: (-y[0], -y[1]), (Y0, Y0), T, adjoint_params=iter([extra])
    )
    second.sum().backward()
    assert torch.equal(extra.grad, torch.zeros(3))


def test_a_solution_without_graph_stays_so():
    field = Field()
    with torch.no_grad():
        assert not fastnode.odeint_adjoint(field, Y0, T).requires_grad
    assert not fastnode.odeint_adjoint(decay, Y0, T, adjoint_params=()).requires_grad


def test_second_derivatives():
    field, y0 = Field(), Y0.clone().requires_grad_()
    function = lambda y: fastnode.odeint_adjoint(field, y, T, method="rk4")[-1]  # noqa: E731
    assert torch.autograd.gradgradcheck(function, (y0,))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    "arguments",
    [
        {"func": decay},
        {"func": Field(), "options": {"first_step": 0.1}, "adjoint_method": "rk4"},
        {"func": Field(), "method": "odd"},
    ],
    ids=str,
)
def test_both_libraries_refuse(library, arguments):
    with pytest.raises(ValueError):
        library.odeint_adjoint(y0=Y0, t=T, **arguments)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    "arguments",
    [
        {"func": decay, "adjoint_params": ()},
        {"func": Field(), "adjoint_options": {"norm": "seminorm"}},
        {"func": Field(), "adjoint_options": {"norm": lambda parts: parts[0].abs()}},
        {"func": Field(), "adjoint_method": "rk4", "adjoint_rtol": 1e-3, "adjoint_atol": 1e-3},
        {
            "func": Field(),
            "options": {"first_step": 0.1},
            "adjoint_method": "rk4",
            "adjoint_options": {"step_size": 0.1},
        },
    ],
    ids=str,
)
def test_both_libraries_take_without_a_warning(library, arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert library.odeint_adjoint(y0=Y0, t=T, **arguments).shape == (3, 2)


@pytest.mark.parametrize("library", LIBRARIES)
def test_both_libraries_warn_of_frozen_parameters_with_a_norm(library):
    field = Field()
    field.unused.requires_grad_(False)
    with pytest.warns(UserWarning, match="adjoint"):
        library.odeint_adjoint(field, Y0, T, adjoint_options={"norm": lambda parts: 0.1})


def test_events_and_arguments_go_through():
    rate = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    unused = torch.ones(1, requires_grad=True)
    t, y = fastnode.odeint_event(
        lambda t, y, rate: -rate * y,
        Y0[:1],
        T[0],
        event_fn=lambda t, y: y - 0.5,
        odeint_interface=fastnode.odeint_adjoint,
        adjoint_params=(unused,),
        args=(rate,),
    )
    gradients = torch.autograd.grad(t, (rate, unused))
    assert gradients[0].item() == pytest.approx(-torch.log(torch.tensor(2.0)).item() / 4, rel=1e-6)
    assert gradients[1].item() == 0


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"adjoint_method": "odd"}, ValueError, "method must be one of"),
        ({"adjoint_options": 3}, TypeError, "adjoint_options must be a dict, got int"),
        ({"adjoint_options": {"norm": "odd"}}, TypeError, "norm in adjoint_options must be"),
        ({"options": {"norm": "seminorm"}}, TypeError, "norm must be callable, got str"),
        ({"adjoint_params": [1.0]}, TypeError, r"adjoint_params\[0\] must be a tensor, got float"),
        ({"func": decay}, ValueError, "func must be an nn.Module .*, got function"),
    ],
    ids=lambda value: None,
)
def test_bad_arguments_are_named(change, kind, words):
    with pytest.raises(kind, match=words):
        fastnode.odeint_adjoint(**{"func": Field(), "y0": Y0, "t": T, **change})
