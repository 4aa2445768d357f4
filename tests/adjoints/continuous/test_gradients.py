"""The continuous adjoint against backpropagation through a tight solve."""

from __future__ import annotations

import pytest
import torch
from selection import slow_but

import fastnode
from fastnode.adjoints.continuous.adjoint import Adjoint
from fastnode.engines import select
from fastnode.engines.methods import ADAPTIVE, NAMES, odeint_request
from fastnode.problem.ivp import make_problem

TIGHT = {"rtol": 1e-9, "atol": 1e-10}
T = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)


class Net(torch.nn.Module):
    def __init__(self, dim=2):
        super().__init__()
        torch.manual_seed(0)
        self.inner = torch.nn.Linear(dim, 5, dtype=torch.float64)
        self.outer = torch.nn.Linear(5, dim, dtype=torch.float64)
        self.evaluations = 0

    def forward(self, t, y):
        self.evaluations += 1
        return self.outer(torch.tanh(self.inner(y))) + torch.sin(3 * t) * y


def start(shape=(3, 2), dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def gradients(solve, field, y0=None, t=T, **options):
    y0, t = (start() if y0 is None else y0).requires_grad_(), t.clone().requires_grad_()
    y = solve(field, y0, t, **options)
    weights = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).reshape(y.shape)
    return torch.autograd.grad((y * weights).sum().abs(), (y0, t, *field.parameters()))


@pytest.mark.parametrize(
    "method", slow_but(NAMES, "euler", "rk4", "dopri5", "bosh3", "implicit_adams", "implicit_euler")
)
def test_every_method_finds_the_gradients_of_backpropagation(method):
    options = dict(TIGHT)
    tolerance = 1e-6
    if method in ("bosh3", "fehlberg2", "adaptive_heun"):
        options, tolerance = {"rtol": 1e-6, "atol": 1e-7}, 1e-3
    elif method not in ADAPTIVE and method != "scipy_solver":
        options["options"] = {"step_size": 0.02}
        tolerance = 0.1 if "euler" in method else 1e-2
    wanted = gradients(fastnode.odeint, Net(), **TIGHT)
    found = gradients(fastnode.odeint_adjoint, Net(), method=method, **options)
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"adjoint_options": {"norm": "seminorm"}},
        {"adjoint_options": {"norm": lambda parts: max(part.abs().max() for part in parts)}},
        {"options": {"norm": lambda y: y.abs().max()}},
        {"options": {"step_t": [0.5], "jump_t": [0.7]}},
        {"adjoint_method": "dopri8"},
        {"rtol": torch.tensor([1e-9, 1e-10], dtype=torch.float64)},
        {"adjoint_rtol": (1e-3, 1e-9, 1e-9, 1e-9, 1e-9, 1e-9, 1e-9)},
    ],
)
def test_options_find_the_gradients_of_backpropagation(options, backwards):
    t = T.flip(0) if backwards else T
    wanted = gradients(fastnode.odeint, Net(), t=t, **TIGHT)
    found = gradients(fastnode.odeint_adjoint, Net(), t=t, **{**TIGHT, **options})
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("norm", [None, "seminorm"])
@pytest.mark.parametrize("width", [0, 1])
def test_complex_states_and_parameters(norm, width):
    class Rotation(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = torch.nn.Parameter(torch.tensor([0.3 - 1j, -0.2 + 2j], dtype=torch.cfloat))
            self.rate.data = self.rate.data.to(torch.cdouble)
            self.scale = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

        def forward(self, t, y):
            if width:
                return tuple(self.forward_one(t, part) for part in y)
            return self.forward_one(t, y)

        def forward_one(self, t, y):
            return self.rate * y - self.scale * y * y.abs() ** 2 * torch.cos(t)

    results = []
    for solve in (fastnode.odeint, fastnode.odeint_adjoint):
        field, y0 = Rotation(), start((3, 2), torch.cdouble).requires_grad_()
        more = {"adjoint_options": {"norm": norm}} if norm and solve is not fastnode.odeint else {}
        t = T.clone().requires_grad_()
        y = solve(field, (y0, y0 / 2) if width else y0, t, **TIGHT, **more)
        y = torch.stack(y) if width else y
        loss = (y * y.conj()).real.sum() + y.imag.sum()
        results.append(torch.autograd.grad(loss, (y0, t, *field.parameters())))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", ["explicit_adams", "implicit_midpoint"])
def test_complex_parameters_of_a_real_state(method):
    rate = torch.tensor([0.5 + 1j], dtype=torch.cdouble, requires_grad=True)

    def field(t, y):
        return -(rate * rate.conj()).real * y + rate.imag

    results = []
    for solve in (fastnode.odeint, fastnode.odeint_adjoint):
        more = {} if solve is fastnode.odeint else {"adjoint_params": (rate,)}
        y = solve(field, start(), T, method=method, options={"step_size": 0.01}, **more)
        results.append(torch.autograd.grad(y[-1].sum(), rate)[0])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


def test_a_tuple_state_is_differentiated_part_by_part():
    results = []
    for solve in (fastnode.odeint, fastnode.odeint_adjoint):
        net, first, second = Net(), start().requires_grad_(), start((4,)).requires_grad_()
        more = {} if solve is fastnode.odeint else {"adjoint_params": tuple(net.parameters())}
        # The second part is constant to autograd in the first, and the other way round.
        a, b = solve(
            lambda t, y, net=net: (net(t, y[0]), -y[1] * t), (first, second), T, **TIGHT, **more
        )
        loss = a.square().sum() + b.prod(dim=1).sum()
        results.append(torch.autograd.grad(loss, (first, second, *net.parameters())))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


def test_rejected_steps_leave_no_trace():
    """Steps are rejected in the middle, where the field suddenly turns fast."""

    class Sudden(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = torch.nn.Parameter(torch.tensor([1.0, 3.0], dtype=torch.float64))
            self.rejected = 0

        def forward(self, t, y):
            return -self.rate * y * (1 + 40 * torch.exp(-((10 * (t - 0.5)) ** 4)))

        def callback_reject_step_adjoint(self, t, state, dt):
            self.rejected += 1

    results = []
    for solve in (fastnode.odeint, fastnode.odeint_adjoint):
        field = Sudden()
        results.append(gradients(solve, field, t=T[::2], rtol=1e-8, atol=1e-12))
    assert field.rejected > 3
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-8)


def test_parameters_without_weight_cost_no_gradient():
    """dopri5 gives its second stage no weight: of 6 evaluations a step, 5 reach the parameters."""
    calls = []

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weight):
            return weight.view_as(weight)

        @staticmethod
        def backward(ctx, grad):
            calls.append(1)
            return grad

    class CountingNet(Net):
        def forward(self, t, y):
            self.evaluations += 1
            weight = Counted.apply(self.inner.weight)
            inner = torch.nn.functional.linear(y, weight, self.inner.bias)
            return self.outer(torch.tanh(inner)) + torch.sin(3 * t) * y

    net = CountingNet()
    y = fastnode.odeint_adjoint(
        net, start(), T[::2], options={"first_step": 0.1}, rtol=1e9, atol=1e9
    )
    calls.clear()
    before = net.evaluations
    y[-1].sum().backward()
    taken = net.evaluations - before
    assert (taken - 1) % 6 == 0
    assert len(calls) == taken - (taken - 1) // 6


def test_without_the_extension_gradients_are_the_same(monkeypatch):
    wanted = gradients(fastnode.odeint_adjoint, Net(), **TIGHT)
    monkeypatch.setattr("fastnode.extension.AVAILABLE", False)
    found = gradients(fastnode.odeint_adjoint, Net(), **TIGHT)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_sixteen_bit_parameters_are_summed_in_more():
    field = Net().bfloat16()
    y = fastnode.odeint_adjoint(
        field,
        start(dtype=torch.float32).bfloat16(),
        T,
        method="rk4",
        options={"step_size": 1e-2},
    )
    y[-1].float().sum().backward()
    wanted = gradients_of_sum(Net())
    for param, exact in zip(field.parameters(), wanted, strict=True):
        assert param.grad.dtype == torch.bfloat16
        assert (param.grad - exact).abs().max() < 0.1 * exact.abs().max()


def gradients_of_sum(field):
    y = fastnode.odeint(field, start(dtype=torch.float32).bfloat16().double(), T, **TIGHT)
    return torch.autograd.grad(y[-1].sum(), tuple(field.parameters()))


def test_backward_pass_runs_under_the_autocast_of_the_forward():
    class Watched(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.seen = torch.nn.Linear(2, 2), set()

        def forward(self, t, y):
            out = self.net(y)
            self.seen.add(out.dtype)
            return out.to(y.dtype)

    field = Watched()
    with torch.autocast("cpu", torch.bfloat16):
        y = fastnode.odeint_adjoint(field, start(dtype=torch.float32), T, rtol=1e-2, atol=1e-2)
    y.sum().backward()
    assert field.seen == {torch.bfloat16} and field.net.weight.grad.any()


def test_any_solution_can_be_given_its_adjoint():
    net, y0 = Net(), start().requires_grad_()
    problem = make_problem(net, y0, T)
    adjoint = Adjoint(problem, tuple(net.parameters()), method="tsit5", **TIGHT)
    with torch.no_grad():
        solution = select.integrate(problem, odeint_request("dopri5", 1e-9, 1e-10, None))
    found = torch.autograd.grad(adjoint.attach(solution)[-1].sum(), (y0, *net.parameters()))
    exact = fastnode.odeint(net, y0, T, **TIGHT)[-1].sum()
    torch.testing.assert_close(found, torch.autograd.grad(exact, (y0, *net.parameters())))
    with pytest.raises(RuntimeError, match="first derivatives only here"):
        torch.autograd.grad(adjoint.attach(solution).sum(), y0, create_graph=True)


def test_a_graph_can_be_walked_twice():
    net = Net()
    y = fastnode.odeint_adjoint(net, start(), T)
    first = torch.autograd.grad(y.sum(), tuple(net.parameters()), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), tuple(net.parameters())), first)


def test_errors_of_the_backward_pass_keep_their_kind():
    class Odd(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise KeyError("odd")

    y0 = start().requires_grad_()
    y = fastnode.odeint_adjoint(lambda t, y: Odd.apply(y), y0, T, adjoint_params=())
    with pytest.raises(KeyError, match="odd"):
        y.sum().backward()
