"""``solve`` with fixed steps in graphs of torch.compile."""

from __future__ import annotations

import pytest
import torch
from compiled_graphs import compiled, own_ops
from selection import slow

import fastnode
from fastnode.api.fixed_in_graph import solve_in_graph

FORWARD, BACKWARD = [0.0, 0.3, 0.55, 0.85, 1.0], [2.0, 1.1, 0.25]


class Field(torch.nn.Module):
    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(3, 3, dtype=dtype)

    def forward(self, t, y):
        return torch.tanh(self.linear(y)) * torch.cos(3 * t)


def times(values):
    return torch.tensor(values, dtype=torch.float64)


def run(solve, field, y0, ts):
    y0, ts = y0.clone().requires_grad_(), ts.clone().requires_grad_()
    solution = solve(y0, ts)
    ys = solution.ys if hasattr(solution, "ys") else solution
    weights = torch.linspace(1, 2, ys.numel(), dtype=ys.dtype).reshape(ys.shape)
    return ys.detach(), *torch.autograd.grad((ys * weights).sum(), [y0, ts, *field.parameters()])


@pytest.mark.parametrize(
    ("method", "adjoint", "ts", "steps"),
    [
        ("euler", "backprop", [0.0, 1.0], 6),
        slow("rk4", "checkpoint", [1.0, -0.5], 3),
        slow("heun3", "backprop", FORWARD, None),
        slow("midpoint", "checkpoint", BACKWARD, None),
    ],
    ids=str,
)
def test_fixed_steps_are_one_graph_of_plain_formulas(method, adjoint, ts, steps):
    field, y0 = Field(), torch.randn(4, 3, dtype=torch.float64)

    def solve(y0, ts):
        return fastnode.solve(field, y0, ts, method=method, steps=steps, adjoint=adjoint).ys

    graph, names = compiled(solve)
    found = run(graph, field, y0, times(ts))
    assert names and not own_ops(names)
    for got, want in zip(found, run(solve, field, y0, times(ts)), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("method", "ts"), [("euler", BACKWARD), slow("rk4", FORWARD)], ids=str)
def test_outputs_inside_of_compiled_steps_are_cubic(method, ts):
    field, y0 = Field(), torch.randn(4, 3, dtype=torch.float64)

    def solve(y0, ts):
        return fastnode.solve(field, y0, ts, method=method, steps=4).ys

    graph, _ = compiled(solve)
    found = run(graph, field, y0, times(ts))
    for got, want in zip(found, run(solve, field, y0, times(ts)), strict=True):
        torch.testing.assert_close(got, want)


def test_compiled_solution_says_what_it_did():
    field, y0, ts = Field(), torch.randn(2, 3, dtype=torch.float64), times(FORWARD)

    def solve(y0, ts):
        solution = fastnode.solve(field, y0, ts, method="midpoint", steps=4)
        return solution.ys, solution.nfe, solution.accepted, solution.status, solution.steps.times

    graph, _ = compiled(solve)
    found, expected = graph(y0, ts), solve(y0, ts)
    # One more than the stages: outputs need the derivative at the last time.
    assert found[1] == 9 and found[2:4] == expected[2:4] == (4, "finished")
    torch.testing.assert_close(found[4], expected[4])


def test_output_times_in_a_graph_have_gradients():
    field, y0 = Field(), torch.randn(2, 3, dtype=torch.float64)

    def ys(ts):
        return solve_in_graph(field, y0, ts, method="rk4", steps=4).ys

    # Where steps end, 0.5, too.
    assert torch.autograd.gradcheck(ys, times([0.0, 0.3, 0.5, 1.0]).requires_grad_())


def test_compiled_solves_take_tuples_args_and_single_times():
    def field(t, y, rate):
        return -rate * y[0], y[1] * torch.cos(t)

    y0 = (torch.ones(2), torch.ones(2, 2))

    def solve(y0, ts, rate):
        return fastnode.solve(field, y0, ts, method="rk4", args=(rate,)).ys

    graph, _ = compiled(solve)
    for ts in ([0.0, 0.5, 1.0], [0.7]):
        given = (y0, torch.tensor(ts), torch.tensor(0.5))
        torch.testing.assert_close(graph(*given), solve(*given))


@pytest.mark.slow
def test_compiled_solve_without_gradient_gives_none():
    field, y0 = Field(torch.float32), torch.ones(2, 3, requires_grad=True)

    def solve(y0):
        ts = torch.tensor([0.0, 1.0])
        return fastnode.solve(field, y0, ts, method="rk4", steps=2, adjoint="none").ys

    graph, _ = compiled(solve)
    assert not graph(y0).requires_grad


@pytest.mark.parametrize(
    "arguments",
    [
        {"method": "rk4", "step_size": 0.25},
        slow({"method": "tsit5"}),
        slow({"method": "euler", "adjoint": fastnode.Revolve(2), "steps": 4}),
    ],
    ids=str,
)
def test_other_solves_break_the_graph_once(arguments):
    torch.compiler.reset()
    field, y0, ts = Field(), torch.randn(2, 3, dtype=torch.float64), times([0.0, 1.0])

    def end(y):
        return fastnode.solve(field, y * 2, ts, **arguments).ys * 3

    assert torch._dynamo.explain(end)(y0).graph_break_count == 1
    torch.testing.assert_close(torch.compile(end, backend="aot_eager")(y0), end(y0))


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"steps": 0}, ValueError, "steps must be an integer of at least 1"),
        ({"method": "rk5"}, ValueError, "method must be one of"),
        ({"steps": 8, "max_num_steps": 4}, fastnode.MaxStepsExceeded, "max_num_steps exceeded"),
    ],
)
def test_compiled_solves_refuse_what_solve_refuses(arguments, kind, words):
    torch.compiler.reset()
    given = {"method": "rk4", "steps": 2, **arguments}
    graph = torch.compile(
        lambda y: fastnode.solve(lambda t, y: -y, y, times([0.0, 1.0]), **given).ys,
        backend="eager",
    )
    with pytest.raises(kind, match=words):
        graph(torch.ones(2))
