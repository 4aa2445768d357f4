from __future__ import annotations

import warnings

import pytest
import torch
import torchdiffeq

import fastnode

IMPLICIT = ["implicit_adams", "fixed_adams"]


class Net(torch.nn.Module):
    """tanh MLP that depends on time and counts its evaluations."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = torch.nn.Linear(4, 16, dtype=torch.float64)
        self.outer = torch.nn.Linear(16, 4, dtype=torch.float64)
        self.nfe = 0

    def forward(self, t, y):
        self.nfe += 1
        return self.outer(torch.tanh(self.inner(y))) + torch.sin(3 * t) * y


def start():
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def grid(n=51, backward=False):
    t = torch.linspace(0, 2.5, n, dtype=torch.float64)
    return t.flip(0) if backward else t


@pytest.mark.filterwarnings("ignore:.*converge")
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-8])
@pytest.mark.parametrize("max_order", [4, 5, 8])
@pytest.mark.parametrize("method", ["explicit_adams", *IMPLICIT])
def test_agrees_with_torchdiffeq_for_a_named_order(method, max_order, tolerance, backward):
    arguments = {
        "method": method,
        "options": {"max_order": max_order},
        "rtol": tolerance,
        "atol": tolerance,
    }
    net, y0, t = Net(), start(), grid(backward=backward)
    ours = fastnode.odeint(net, y0, t, **arguments)
    nfe, net.nfe = net.nfe, 0
    theirs = torchdiffeq.odeint(net, y0, t, **arguments)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    assert nfe == net.nfe


@pytest.mark.parametrize("options", [{"step_size": 0.02}, {"step_size": 0.02, "interp": "cubic"}])
def test_options_of_the_grid_mean_what_they_mean_elsewhere(options):
    t = torch.tensor([0.0, 0.55, 1.3], dtype=torch.float64)
    reference = fastnode.odeint(Net(), start(), t, method="dopri8")
    for method in ("explicit_adams", "implicit_adams"):
        y = fastnode.odeint(Net(), start(), t, method=method, options=options, rtol=1e-6)
        assert (y - reference).abs().max() < 5e-4


def test_default_order_of_the_implicit_method_is_torchdiffeqs():
    t, arguments = grid(), {"method": "implicit_adams", "rtol": 1e-4, "atol": 1e-4}
    ours = fastnode.odeint(Net(), start(), t, **arguments)
    theirs = torchdiffeq.odeint(Net(), start(), t, **arguments)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_explicit_adams_default_order_is_stable():
    def decay(t, y):
        return -2 * y

    t, y0 = torch.linspace(0, 10, 101, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    wanted = torch.exp(-2 * t)
    ours = fastnode.odeint(decay, y0, t, method="explicit_adams")[:, 0]
    theirs = torchdiffeq.odeint(decay, y0, t, method="explicit_adams")[:, 0]
    assert (ours - wanted).abs().max() < 1e-3
    assert not (theirs - wanted).abs().max() < 1e3


@pytest.mark.parametrize("method", ["explicit_adams", "implicit_adams"])
def test_uneven_grids_are_not_treated_as_even_ones(method):
    """torchdiffeq uses the weights of even steps, with an error that no order mends."""
    steps = torch.tensor([0.015, 0.035], dtype=torch.float64).repeat(60)
    t = torch.cat([torch.zeros(1, dtype=torch.float64), steps.cumsum(0)])
    reference = fastnode.odeint(Net(), start(), t[[0, -1]], method="dopri8")[-1]
    arguments = {"method": method, "options": {"max_order": 5, "max_iters": 20}}
    ours = fastnode.odeint(Net(), start(), t, **arguments)[-1]
    theirs = torchdiffeq.odeint(Net(), start(), t, **arguments)[-1]
    assert 20 * (ours - reference).abs().max() < (theirs - reference).abs().max()


def test_orders_below_four_are_rk4_with_a_warning():
    with pytest.warns(UserWarning, match="max_order 3 is below 4") as caught:
        y = fastnode.odeint(
            Net(), start(), grid(), method="explicit_adams", options={"max_order": 3}
        )
    assert caught[0].filename == __file__
    torch.testing.assert_close(y, fastnode.odeint(Net(), start(), grid(), method="rk4"))


@pytest.mark.parametrize("method", IMPLICIT)
def test_a_corrector_that_does_not_converge_warns_once(method):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        fastnode.odeint(Net(), start(), grid(), method=method, options={"max_iters": 1})
    assert [str(each.message).partition(" in 1 ")[0] for each in caught] == [
        "the corrector did not converge"
    ]
    assert caught[0].filename == __file__


def test_tuple_states_and_tolerances_of_their_elements():
    net, pair = Net(), (start(), torch.zeros(3, dtype=torch.float64))

    def field(t, y):
        return net(t, y[0]), torch.cos(t) - y[1]

    arguments = {"method": "implicit_adams", "rtol": (1e-3, 1e-5), "atol": (1e-4, 1e-6)}
    ours = fastnode.odeint(field, pair, grid(), **arguments)
    theirs = torchdiffeq.odeint(field, pair, grid(), **arguments)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*converge")
@pytest.mark.parametrize("uneven", [0.0, 0.03])
@pytest.mark.parametrize("method", ["explicit_adams", "implicit_adams"])
def test_gradients(method, uneven):
    y0 = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([[0.5, -1.0], [0.8, 0.3]], dtype=torch.float64, requires_grad=True)
    t = torch.linspace(0, 0.9, 8, dtype=torch.float64)
    t = (t + uneven * torch.sin(7 * t)).requires_grad_()

    def solve(y0, weights, t):
        return fastnode.odeint(
            lambda t, y: torch.tanh(y @ weights) * torch.cos(t), y0, t, method=method
        )

    assert torch.autograd.gradcheck(solve, (y0, weights, t))


def test_interior_times_of_the_grid_hardly_matter():
    """The exact solution at the end does not depend on them."""
    t = grid(31).requires_grad_()
    y = fastnode.odeint(Net(), start(), t, method="explicit_adams")[-1].sum()
    (derivatives,) = torch.autograd.grad(y, t)
    assert derivatives[1:-1].abs().max() < 1e-2 * derivatives[-1].abs()


@pytest.mark.parametrize(("option", "value"), [("max_order", 13), ("max_order", 0)])
def test_orders_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=option):
        fastnode.odeint(Net(), start(), grid(), method="implicit_adams", options={option: value})
