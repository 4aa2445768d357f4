"""Compiled fields of tuples, with args, and of functions; gradients of gradients, and JVPs."""

from __future__ import annotations

import pytest
import torch
from selection import slow
from torch import nn

import fastnode
from fastnode import extension

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)

TIMES = torch.tensor([0.0, 0.3, 0.5], dtype=torch.float64)
TIGHT = {"method": "dopri5", "rtol": 1e-7, "atol": 1e-9}


class Flow(nn.Module):
    """A continuous normalising flow: state and log-density, with the exact trace."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2))

    def forward(self, t, state):
        z, _ = state
        with torch.enable_grad():
            z = z if z.requires_grad else z.detach().requires_grad_()
            f = self.net(z) * torch.cos(t).reshape(-1, 1)
            rows = [torch.autograd.grad(f[:, i].sum(), z, create_graph=True)[0] for i in range(2)]
        return f, -sum(row[:, i] for i, row in enumerate(rows))


class Scaled(nn.Module):
    """A field with further arguments."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, t, y, a, power, b):
        return torch.tanh(self.layer(y) @ a) ** power + b * torch.cos(t)


def flow(batch, seed=0):
    torch.manual_seed(seed)
    module = Flow().double()
    return module, (torch.randn(batch, 2).double(), torch.randn(batch).double())


def flat(x):
    return torch.cat([each.reshape(-1) for each in x]) if isinstance(x, tuple) else x


def gradients(run, func, inputs):
    """The result of run(func, leaves), and its gradients."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    ys = run(func, leaves)
    wanted = [*leaves, *(func.parameters() if isinstance(func, nn.Module) else ())]
    found = torch.autograd.grad(flat(ys).square().sum(), wanted, allow_unused=True)
    pairs = zip(wanted, found, strict=True)
    return [flat(ys), *(torch.zeros_like(x) if g is None else g for x, g in pairs)]


def agree(ours, wanted, close=1e-10):
    for a, b in zip(ours, wanted, strict=True):
        scale = b.detach().abs().max().clamp(min=1)
        torch.testing.assert_close(a, b, rtol=0, atol=float(close * scale))


ADJOINTS = ["backprop", "checkpoint", fastnode.Revolve(2)]


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
@pytest.mark.parametrize("batch", [2, 13])
def test_tuples_take_the_steps_of_the_native_engine(batch, adjoint):
    module, state = flow(batch)
    compiled = fastnode.compile_field(module, state)
    steps = {}

    def run(engine):
        def solve(func, leaves):
            options = {"engine": engine, "adjoint": adjoint, **TIGHT}
            solution = fastnode.solve(func, tuple(leaves), TIMES, **options)
            assert [x.shape for x in solution.ys] == [(3, batch, 2), (3, batch)]
            steps[engine] = solution
            return solution.ys

        return solve

    ours = gradients(run("fused"), compiled, state)
    wanted = gradients(run("native"), module, state)
    agree(ours, wanted)
    # The norm is the largest of the parts, as elsewhere.
    one, other = steps["fused"].steps, steps["native"].steps
    torch.testing.assert_close(one.times, other.times)
    torch.testing.assert_close(one.error, other.error, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(one.stiffness, other.stiffness, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["rk4", "adaptive_heun"])
def test_odeint_of_tuples_uses_code(method, by_code):
    module, state = flow(13)
    compiled = fastnode.compile_field(module, state)

    def run(func, leaves):
        return fastnode.odeint(func, tuple(leaves), TIMES, method=method)

    agree(gradients(run, compiled, state), gradients(run, module, state))
    assert len(by_code) == 1 and by_code[0].layout.shapes == ((13, 2), (13,))


@pytest.mark.parametrize("batch", [slow(3), 9])
def test_tuples_with_per_sample_stepping(batch):
    module, state = flow(batch)
    compiled = fastnode.compile_field(module, state)
    times = TIMES * (1 + torch.arange(batch)[:, None] / batch)

    def run(engine):
        def solve(func, leaves):
            options = {"per_sample": True, "engine": engine, **TIGHT}
            solution = fastnode.solve(func, tuple(leaves), times, **options)
            return *solution.ys, torch.cat([each.times for each in solution.steps])

        return solve

    with torch.no_grad():
        found = run("fused")(compiled, state), run("reference")(module, state)
        for a, b in zip(*found, strict=True):
            # The ends of steps depend on errors, which cancel.
            torch.testing.assert_close(a, b, rtol=0, atol=1e-8, equal_nan=True)

    def states(engine):
        return lambda func, leaves: run(engine)(func, leaves)[:2]

    agree(gradients(states("auto"), compiled, state), gradients(states("reference"), module, state))


def test_images_with_per_sample_stepping():
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 2, 3, padding=1).double()

    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv

        def forward(self, t, y):
            return torch.tanh(self.conv(y))

    y0 = torch.randn(5, 2, 3, 3).double()
    options = {"per_sample": True, **TIGHT}
    with torch.no_grad():
        compiled = fastnode.compile_field(Field(), y0)
        ours = fastnode.solve(compiled, y0, TIMES, engine="fused", **options).ys
        wanted = fastnode.solve(Field(), y0, TIMES, engine="reference", **options).ys
    agree([ours], [wanted])


def test_tuples_by_finite_differences():
    module, state = flow(2)
    compiled = fastnode.compile_field(module, state)
    t = TIMES.clone().requires_grad_()

    def solve(z, density, t, *_):
        return fastnode.odeint(compiled, (z, density), t, rtol=1e-11, atol=1e-12, method="dopri5")

    inputs = (*(x.requires_grad_() for x in state), t, *module.parameters())
    assert torch.autograd.gradcheck(solve, inputs, atol=1e-5, rtol=1e-4)


def test_tuples_without_a_common_batch_go_elsewhere(by_code):
    class Odd(nn.Module):
        def forward(self, t, state):
            return tuple(-x for x in state)

    state = torch.randn(3, 2), torch.randn(2)
    compiled = fastnode.compile_field(Odd(), (state[0], state[0]))
    ours = fastnode.odeint(compiled, state, TIMES)
    agree(ours, fastnode.odeint(Odd(), state, TIMES), 1e-6)
    assert not by_code
    with pytest.raises(ValueError, match="with one B"):
        fastnode.compile_field(Odd(), state)


def test_regularised_solves_of_tuples():
    """Gradients of the largest of several norms are made by other engines."""
    module, state = flow(13)
    compiled = fastnode.compile_field(module, state)
    found = []
    for func in (compiled, module):
        regularizer = fastnode.regularize.Global()
        _, penalty = regularizer.solve(func, state, TIMES, method="dopri5", rtol=1e-5, atol=1e-5)
        found.append(torch.autograd.grad(penalty, list(module.parameters())))
    agree(*found)


def test_states_drawn_from_solves_of_tuples():
    module, state = flow(13)
    compiled, found = fastnode.compile_field(module, state), []
    for func in (compiled, module):
        generator = torch.Generator().manual_seed(3)
        regularizer = fastnode.regularize.Local("biased", generator=generator)
        _, penalty = regularizer.solve(func, state, TIMES, method="dopri5", rtol=1e-5, atol=1e-5)
        found.append([penalty, *torch.autograd.grad(penalty, list(module.parameters()))])
    agree(*found)


def extra():
    torch.manual_seed(1)
    module = Scaled().double()
    return (
        module,
        torch.randn(5, 3).double(),
        torch.randn(3, 3).double(),
        torch.tensor(0.3).double(),
    )


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_args_are_shared_and_get_gradients(adjoint, by_code):
    module, y0, a, b = extra()
    compiled = fastnode.compile_field(module, y0, args=(a, 2, b))

    def run(func, leaves):
        y0, a, b = leaves
        options = {"args": (a, 2, b), "adjoint": adjoint, **TIGHT}
        return fastnode.solve(func, y0, TIMES, **options).ys

    agree(gradients(run, compiled, (y0, a, b)), gradients(run, module, (y0, a, b)))
    assert len(by_code) == 1
    # Others are read at the next solve; a number is part of the code.
    for args in ((2 * a, 2, b + 1), (a, 3, b)):
        ours = fastnode.odeint(compiled, y0, TIMES, args=args)
        agree([ours], [fastnode.odeint(module, y0, TIMES, args=args)])
    assert len(by_code) == 3


def test_args_that_results_depend_on_by_operations():
    module, y0, a, b = extra()
    compiled = fastnode.compile_field(module, y0, args=(a, 2, b))
    rate = torch.tensor(0.5).double().requires_grad_()
    found = [
        torch.autograd.grad(
            fastnode.odeint(func, y0, TIMES, args=(a * rate, 2, b), method="dopri5").sum(), rate
        )
        for func in (compiled, module)
    ]
    agree(*found)


def test_args_by_finite_differences():
    module, y0, a, b = extra()
    compiled = fastnode.compile_field(module, y0, args=(a, 2, b))

    def solve(y0, a, b, *_):
        options = {"rtol": 1e-11, "atol": 1e-12, "method": "dopri5"}
        return fastnode.odeint(compiled, y0, TIMES, args=(a, 2, b), **options)

    inputs = [x.requires_grad_() for x in (y0[:2], a, b)]
    assert torch.autograd.gradcheck(solve, (*inputs, *module.parameters()), atol=1e-5, rtol=1e-4)


def test_args_with_per_sample_stepping():
    module, y0, a, b = extra()
    compiled = fastnode.compile_field(module, y0, args=(a, 2, b))

    class WithTimes(nn.Module):
        """Its times have a dimension of samples."""

        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, t, y, a, power, b):
            return self.inner(t[:, None], y, a, power, b)

    def run(engine):
        def solve(func, leaves):
            y0, a, b = leaves
            options = {"args": (a, 2, b), "per_sample": True, "engine": engine, **TIGHT}
            return fastnode.solve(func, y0, TIMES, **options).ys

        return solve

    inputs = (y0, a, b)
    agree(
        gradients(run("auto"), compiled, inputs), gradients(run("reference"), WithTimes(), inputs)
    )
    with pytest.raises(ValueError, match="args that all samples share"):
        # Three samples: a belongs to them, by solve's rule.
        run("fused")(compiled, (y0[:3].requires_grad_(False), a, b))


class RowWise(nn.Module):
    def forward(self, t, y, a):
        return torch.tanh(y) * a[: len(y)]


@pytest.mark.parametrize(
    ("field", "arg", "reason"),
    [
        (lambda t, y, a: y * a, torch.ones(6, 4), "args are shared by all samples"),
        (lambda t, y, a: y * a[:, None], torch.ones(6), "args are shared by all samples"),
        (RowWise(), torch.arange(24.0).reshape(6, 4), "args are shared by all samples"),
        (RowWise(), torch.arange(12.0).reshape(3, 4), "args are shared by all samples"),
        (lambda t, y, a: y * a, torch.ones(4, dtype=torch.int64), "must be floating"),
        (lambda t, y, a: y * a, torch.ones(4).double(), "float64 and the state"),
        (lambda t, y, a: y * a["x"], {"x": 1.0}, "must be tensors and numbers"),
        (lambda t, y, a: y * float(a), torch.tensor(1.0), "value of a tensor"),
    ],
    ids=range(8),
)
def test_args_that_code_cannot_read_are_refused(field, arg, reason):
    with pytest.raises(fastnode.NotCompilable, match=reason):
        fastnode.compile_field(field, torch.randn(6, 4), args=(arg,))


def test_refused_args_are_solved_elsewhere():
    compiled = fastnode.compile_field(RowWise(), torch.randn(6, 4), args=(torch.ones(1, 4),))
    y0, a = torch.randn(6, 4), torch.arange(24.0).reshape(6, 4)
    with pytest.warns(UserWarning, match="shared by all samples"):
        ours = fastnode.odeint(compiled, y0, TIMES, args=(a,))
    agree([ours], [fastnode.odeint(RowWise(), y0, TIMES, args=(a,))])
