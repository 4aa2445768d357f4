"""Given steps of perceptrons by one call, through ``solve`` and the modules."""

import pytest
import torch

import fastnode
from fastnode import extension
from fastnode.engines.fused import joint as fused
from fastnode.nn import MLPField, NeuralODE
from fastnode.tableaus import METHODS

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)
FIXED = [name for name, tableau in METHODS.items() if tableau.error is None]


def solved(field, engine, *, adjoint="backprop", **options):
    torch.manual_seed(0)
    y0 = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    ts = torch.tensor([0, 0.25, 0.5, 1.5], dtype=torch.float64)
    solution = fastnode.solve(field, y0, ts, engine=engine, adjoint=adjoint, **options)
    found = torch.autograd.grad(solution.ys.sin().sum(), [y0, *field.parameters()])
    return solution, found


@pytest.mark.parametrize("adjoint", ["backprop", "checkpoint"])
@pytest.mark.parametrize("given", [{}, {"step_size": 0.25}, {"steps": 12}], ids=str)
@pytest.mark.parametrize("method", FIXED)
def test_solution_and_gradients_are_those_of_the_native_engine(method, given, adjoint):
    torch.manual_seed(1)
    field = MLPField(3, 8, activation="tanh").double()
    ours, found = solved(field, "fused", method=method, adjoint=adjoint, **given)
    theirs, wanted = solved(field, "native", method=method, adjoint=adjoint, **given)
    torch.testing.assert_close(ours.ys, theirs.ys, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    assert (ours.nfe, ours.accepted, ours.rejected) == (theirs.nfe, theirs.accepted, 0)
    torch.testing.assert_close(ours.steps.times, theirs.steps.times, rtol=0, atol=0)
    assert ours.steps.error.isnan().all() and len(ours.steps) == len(theirs.steps)


def test_adaptive_steps_with_checkpoint_are_those_of_backprop():
    field = MLPField(3, 8).double()
    for method in ("dopri5", "tsit5", "adaptive_heun"):
        ours = solved(field, "fused", method=method, adjoint="checkpoint")
        theirs = solved(field, "native", method=method)
        torch.testing.assert_close(ours[1], theirs[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("steps", [5, 7])
def test_times_inside_of_a_step_go_to_other_engines(steps):
    field = MLPField(3, 8).double()
    y0, ts = torch.ones(2, 3, dtype=torch.float64), torch.tensor([0, 0.3, 1]).double()
    with pytest.raises(ValueError, match="inside"):
        fastnode.solve(field, y0, ts, method="rk4", steps=steps, engine="fused")
    fastnode.solve(field, y0, ts, method="rk4", steps=steps)


def test_too_many_steps_are_refused_as_by_other_engines():
    field, ts = MLPField(3, 8), torch.tensor([0.0, 1.0])
    options = {"method": "rk4", "steps": 11, "max_num_steps": 10}
    with pytest.raises(fastnode.MaxStepsExceeded):
        fastnode.solve(field, torch.ones(2, 3), ts, **options)


def test_modules_take_it(monkeypatch):
    calls = []
    integrate = fused.integrate
    monkeypatch.setattr(
        fused, "integrate", lambda *args: calls.append(integrate(*args)) or calls[-1]
    )
    field, z = MLPField(3, 8), torch.ones(2, 3)
    node = NeuralODE(field, "rk4", options={"step_size": 0.25})
    torch.testing.assert_close(
        node(z),
        fastnode.odeint(
            lambda t, y: field(t, y),
            z,
            torch.tensor([0.0, 1.0]),
            method="rk4",
            options={"step_size": 0.25},
        )[-1],
    )
    assert node.nfe == 16 and len(calls) == 1 and calls[0] is not None


def test_adjoint_params_that_are_no_leaves_are_refused():
    field, ts = MLPField(3, 8), torch.tensor([0.0, 1.0])
    held = [next(field.parameters()) * 2]
    with pytest.raises(ValueError, match="leaf"):
        fastnode.solve(field, torch.ones(2, 3), ts, adjoint="checkpoint", adjoint_params=held)
