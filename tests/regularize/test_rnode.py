"""RNODE: what it integrates, and that its states have no say in the steps."""

import pytest
import torch

import fastnode
from fastnode.regularize import RNODE, Exponential

TS = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def drawn(y, seed=0):
    return torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(seed))


def regularizer(kinetic=1.0, jacobian=0.0, seed=0):
    return RNODE(kinetic, jacobian, generator=torch.Generator().manual_seed(seed))


def test_integrals_of_a_linear_field(y0):
    a = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    _, frobenius = regularizer(0.0, 2.0).solve(lambda t, y: y @ a, y0, TS)
    torch.testing.assert_close(frobenius, 2 * (drawn(y0) @ a.T).square().mean())
    _, energy = regularizer(3.0).solve(lambda t, y: -y, y0, TS, **TIGHT)
    exact = 3 * y0.square().mean() / 2 * (1 - torch.exp(torch.tensor(-2.0))) / 2
    torch.testing.assert_close(energy, exact.to(energy))


@pytest.mark.parametrize("engine", ["reference", "native"])
@pytest.mark.parametrize("method", ["tsit5", "dopri8", "bosh3"])
@pytest.mark.parametrize("form", ["tensor", "tuple"])
def test_extra_states_do_not_change_the_accepted_steps(field, y0, method, engine, form):
    def pair(t, y):
        return field(t, y[0]), -y[1]

    func, start = (field, y0) if form == "tensor" else (pair, (y0, y0[0]))
    atol = 1e-6 if form == "tensor" else (1e-6, torch.full((3,), 1e-5))
    rtol = torch.full((3,), 1e-5) if form == "tensor" else 1e-5
    options = {"method": method, "engine": engine, "rtol": rtol, "atol": atol, "save": "dense"}
    plain = fastnode.solve(func, start, TS, **options)
    solution, _ = regularizer(jacobian=1.0).solve(func, start, TS, **options)
    assert (solution.nfe, solution.rejected) == (plain.nfe, plain.rejected)
    for mine, theirs in (
        (solution.steps.times, plain.steps.times),
        (solution.steps.error, plain.steps.error),
        (solution.ys, plain.ys),
        (solution.steps.states, plain.steps.states),
        (solution.evaluate(0.7), plain.evaluate(0.7)),
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["tsit5", "rk4"])
def test_gradients_agree_with_states_written_out(field, y0, gradients, method):
    eps = drawn(y0)

    def func(t, state):
        with torch.enable_grad():
            y = state[0] if state[0].requires_grad else state[0].detach().requires_grad_()
            f = field(t, y)
            (product,) = torch.autograd.grad(f, y, eps, create_graph=True)
        return f, f.square().mean() / 2, product.square().mean()

    options = {"method": method, "rtol": 1e-5, "atol": 1e-7}
    if method == "rk4":
        options["steps"] = 5
    zero = torch.zeros((), dtype=torch.float64)
    # Constant steps of an adaptive method: those that the plain solve takes.
    _, penalty = regularizer(0.3, 0.7).solve(field, y0, TS, **options)
    atol = (1e-7, torch.inf, torch.inf)
    _, energy, frobenius = fastnode.solve(
        func, (y0, zero, zero), TS, **{**options, "atol": atol, "rtol": (1e-5, 0.0, 0.0)}
    ).ys
    expected = 0.3 * energy[-1] + 0.7 * frobenius[-1]
    torch.testing.assert_close(penalty, expected)
    torch.testing.assert_close(gradients(penalty, field), gradients(expected, field))


def test_one_eps_for_each_solve(field, y0):
    values = [regularizer(0.0, 1.0, seed).solve(field, y0, TS)[1].item() for seed in (1, 1, 2)]
    assert values[0] == values[1] != values[2]
    one = regularizer(0.0, 1.0)
    assert one.solve(field, y0, TS)[1] != one.solve(field, y0, TS)[1]


def test_each_weight_follows_its_schedule(y0):
    a = torch.eye(3, dtype=torch.float64)
    made = regularizer(0.0, Exponential(4.0, 1.0, 10))
    made.step = 10
    _, penalty = made.solve(lambda t, y: y @ a, y0, TS)
    torch.testing.assert_close(penalty, drawn(y0).square().mean())


def test_without_a_graph_and_without_dependence_on_the_state(field, y0):
    with torch.no_grad():
        solution, penalty = regularizer(1.0, 1.0).solve(field, y0, TS)
    assert not penalty.requires_grad and not solution.ys.requires_grad and penalty > 0
    _, penalty = regularizer(1.0, 1.0).solve(lambda t, y: torch.ones_like(y), y0, TS)
    torch.testing.assert_close(penalty, torch.tensor(0.5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RNODE(kinetic=-1.0), "kinetic must be at least 0"),
        (lambda: RNODE(jacobian=-1.0), "jacobian must be at least 0"),
        (
            lambda: RNODE().solve(lambda t, y: y, torch.ones(2, 1), TS, per_sample=True),
            "per_sample=False",
        ),
        (
            lambda: RNODE().solve(lambda t, y: y, (torch.ones(1),), TS, rtol=(0.1, 0.1)),
            "rtol must have one entry for each of the 1 tensors of y0, got 2",
        ),
    ],
)
def test_bad_arguments_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("adjoint", ["backprop", "checkpoint"])
def test_rnode_is_positive_in_reverse_time(y0, adjoint):
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    held = {} if adjoint == "backprop" else {"adjoint_params": (rate,)}
    found = []
    # Of dy/dt = a y forwards and of dy/dt = -a y backwards the solutions are the same.
    for sign, ts in ((1, TS), (-1, -TS)):
        _, penalty = regularizer(1.0, 1.0).solve(
            lambda t, y, sign=sign: sign * rate * y, y0, ts, adjoint=adjoint, **held, **TIGHT
        )
        found.append((penalty.detach(), *torch.autograd.grad(penalty, rate)))
    assert found[0][0] > 0
    torch.testing.assert_close(*found)
