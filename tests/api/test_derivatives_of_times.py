"""Derivatives with respect to times, in both modes: those of backprop, and never a silent zero."""

from __future__ import annotations

import pytest
import torch
from selection import slow, slow_but
from torch.autograd import forward_ad
from torch.autograd.functional import jacobian
from torch.func import functional_call, jacfwd, jacrev, jvp

import fastnode

ADJOINTS = ["backprop", "checkpoint", fastnode.Revolve(1), "reversible", "continuous"]
#: The steps are the same in all modes, and their sizes constants: derivatives agree at any
#: tolerance, but those of a second solve.
LOOSE = {"rtol": 1e-4, "atol": 1e-4}
TIGHT = {"rtol": 1e-8, "atol": 1e-8}
Y0 = torch.tensor([[1.0, -0.3], [0.2, 0.7], [2.0, 1.1]], dtype=torch.float64)


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def swing(t, y):
    t = t.reshape(-1, *(1,) * (y.dim() - 1)) if t.dim() else t
    return torch.sin(y) * torch.cos(3 * t)


def grow(t, y):
    return y


def agree(func, *points, near=1e-6):
    """Both modes of torch.func, dual numbers and backprop agree at each point."""
    for i, point in enumerate(points):

        def alone(x, i=i):
            return func(*points[:i], x, *points[i + 1 :])

        wanted = jacobian(alone, point)
        assert wanted.abs().max() > 0.1
        torch.testing.assert_close(jacfwd(alone)(point), wanted, rtol=near, atol=near)
        torch.testing.assert_close(jacrev(alone)(point), wanted, rtol=near, atol=near)
        direction = torch.linspace(1, 2, point.numel(), dtype=point.dtype).reshape(point.shape)
        expected = (wanted * direction).flatten(-point.dim() or wanted.dim()).sum(-1)
        _, tangent = jvp(alone, (point,), (direction,))
        if point.dim():
            torch.testing.assert_close(tangent, expected, rtol=near, atol=near)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(point, direction)
            also = forward_ad.unpack_dual(alone(dual)).tangent
        torch.testing.assert_close(also, tangent)


METHODS = ["dopri5", "tsit5", "dopri8", "rk4", "implicit_midpoint", "explicit_adams"]


@pytest.mark.parametrize("method", slow_but(METHODS, *set(METHODS) - {"dopri5", "dopri8"}))
def test_odeint(method):
    agree(
        lambda y, t: fastnode.odeint(swing, y, t, method=method, **LOOSE),
        Y0[0],
        vector(0, 0.4, 1),
    )


@pytest.mark.parametrize("interp", ["linear", "cubic"])
@pytest.mark.parametrize("step_size", [0.1, 0.3])
def test_odeint_step_size(step_size, interp):
    options = {"step_size": step_size, "interp": interp}
    agree(
        lambda t: fastnode.odeint(swing, Y0[0], t, method="rk4", options=options),
        vector(0, 0.4, 0.55, 1),
    )


def test_odeint_adjoint():
    agree(
        lambda t: fastnode.odeint_adjoint(swing, Y0[0], t, adjoint_params=(), **TIGHT),
        vector(0, 0.4, 1),
        near=1e-4,
    )


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
@pytest.mark.parametrize("options", [LOOSE, {"method": "rk4", "steps": 5}])
def test_solve(adjoint, options):
    held = {} if adjoint == "backprop" else {"adjoint_params": ()}
    if adjoint == "continuous" and options is LOOSE:
        options = TIGHT
    agree(
        lambda t: fastnode.solve(swing, Y0[0], t, adjoint=adjoint, **held, **options).ys,
        vector(0, 0.4, 1),
        # Two schemes where transforms run backprop, and two solves.
        near=1e-2 if adjoint in ("reversible", "continuous") and "steps" in options else 1e-5,
    )


@pytest.mark.parametrize("method", ["tsit5", slow("dopri8"), slow("bosh3")])
@pytest.mark.parametrize("times", [vector(0, 0.4, 1), torch.stack([vector(0, 0.4, 1)] * 3)])
def test_solve_per_sample(method, times):
    times = times * vector(1, 2, 0.5)[:, None] if times.dim() == 2 else times
    agree(
        lambda y, t: fastnode.solve(swing, y, t, method=method, per_sample=True, **LOOSE).ys,
        Y0,
        times,
        near=1e-9,
    )


def test_solve_per_sample_tangents_pass_by_step_control():
    # At loose tolerances the steps, and so what a tangent through them adds, are large.
    agree(
        lambda y: fastnode.solve(swing, y, vector(0, 1), per_sample=True, rtol=1e-2).ys, Y0,
        near=1e-9,
    )  # fmt: skip


def test_solve_per_sample_parameters_in_forward_mode():
    net = torch.nn.Linear(2, 2, dtype=torch.float64)
    names = dict(net.named_parameters())

    def func(weight):
        held = {**names, "weight": weight}
        return fastnode.solve(
            lambda t, y: torch.sin(functional_call(net, held, (y,))), Y0, vector(0, 1),
            per_sample=True, rtol=1e-2,
        ).ys  # fmt: skip

    weight = net.weight.detach()
    torch.testing.assert_close(jacfwd(func)(weight), jacobian(func, weight))


@pytest.mark.parametrize("adjoint", ["backprop", "checkpoint"])
@pytest.mark.parametrize("options", [{}, {"per_sample": True}, {"method": "rk4", "steps": 4}])
@pytest.mark.parametrize("engine", ["native", "reference"])
def test_evaluate(adjoint, options, engine):
    if options.get("per_sample") and engine == "native":
        engine = "auto"
    y0 = Y0.clone().requires_grad_()
    held = {} if adjoint == "backprop" else {"adjoint_params": ()}
    found = fastnode.solve(
        swing, y0, vector(0, 1), save="dense", adjoint=adjoint, engine=engine, **held, **options
    )
    # At an end of a step too.
    agree(found.evaluate, vector(0.2, 0.5, 1), near=1e-8)
    with torch.no_grad():
        slope = swing(vector(1), found.ys[-1])
    by_end = jacfwd(found.evaluate)(vector(1))
    torch.testing.assert_close(by_end.reshape(-1), slope.reshape(-1), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("options", [{}, {"method": "rk4", "steps": 4}])
def test_evaluate_of_a_solve_inside(options):
    def func(t):
        times = torch.cat([t[:1], vector(1)])
        return fastnode.solve(swing, Y0, times, save="dense", **options).evaluate(t[1:])

    agree(func, vector(0, 0.5, 0.6))


def test_odeint_dense():
    dense = fastnode.odeint_dense(swing, Y0[0], 0.0, 1.0)
    agree(dense, vector(0.2, 0.5, 1))
    agree(lambda t: fastnode.odeint_dense(swing, Y0[0], t[0], t[1])(t[2:]), vector(0, 1, 0.6))


def falls_to(level):
    return lambda t, y: y.sum() - level


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_odeint_event_times(method):
    options = {"step_size": 0.1, "interp": "cubic"} if method == "rk4" else None

    def func(start, y, level):
        t, ys = fastnode.odeint_event(
            lambda t, y: -y, y, start, event_fn=falls_to(level), method=method, options=options,
            **LOOSE,
        )  # fmt: skip
        return torch.cat([t.reshape(1), ys[1]])

    exact = torch.log(torch.tensor(2.0, dtype=torch.float64))
    y0, level = vector(1, 1), torch.tensor(1.0, dtype=torch.float64)
    torch.testing.assert_close(func(vector(0), y0, level)[0], exact, rtol=1e-3, atol=1e-3)
    for at, argument in enumerate((vector(0), y0, level)):

        def alone(x, at=at):
            given = [vector(0), y0, level]
            given[at] = x
            return func(*given)

        wanted = jacobian(alone, argument)
        assert wanted[0].abs().max() > 0.1
        torch.testing.assert_close(jacfwd(alone)(argument), wanted, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(jacrev(alone)(argument), wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("options", [LOOSE, {"method": "rk4", "steps": 10}])
def test_solve_event_times(options):
    def func(y):
        found = fastnode.solve(
            lambda t, y: -y, y, vector(0, 3), events=falls_to(1.0), **options
        ).events[0]
        return torch.cat([found.times, found.states[0]])

    wanted = jacobian(func, vector(1, 1))
    torch.testing.assert_close(jacfwd(func)(vector(1, 1)), wanted, rtol=1e-6, atol=1e-8)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(vector(1, 1), vector(1, 0))
        tangent = forward_ad.unpack_dual(func(dual)).tangent
    torch.testing.assert_close(tangent, wanted[:, 0], rtol=1e-6, atol=1e-8)


def test_scipy_solver_refuses_forward_mode():
    pytest.importorskip("scipy")

    def func(y, t):
        return fastnode.odeint(swing, y, t, method="scipy_solver")

    for argument, point in enumerate((Y0[0], vector(0, 1))):
        given = [Y0[0], vector(0, 1)]

        def alone(x, given=given, argument=argument):
            return func(*given[:argument], x, *given[argument + 1 :])

        with pytest.raises(ValueError, match="scipy_solver.*derivatives"):
            jvp(alone, (point,), (torch.ones_like(point),))


#: Exact for dy/dt = y from 1: ys[1] = exp(t_1 - t_0).
EXACT = [-1.6487, 1.6487, 0.0]


@pytest.mark.parametrize("adjoint", ["backprop", "checkpoint", fastnode.Revolve(1)], ids=str)
@pytest.mark.parametrize("method", ["rk4", "midpoint"])
def test_output_time_on_a_point_of_the_grid(adjoint, method):
    t = vector(0, 0.5, 1).requires_grad_()
    held = {} if adjoint == "backprop" else {"adjoint_params": ()}
    for create_graph in (False, True):
        ys = fastnode.solve(grow, vector(1), t, method=method, steps=4, adjoint=adjoint, **held).ys
        (found,) = torch.autograd.grad(ys[1].sum(), t, create_graph=create_graph)
        torch.testing.assert_close(found, vector(*EXACT), rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("interp", ["cubic", "linear"])
@pytest.mark.parametrize("method", ["rk4", "explicit_adams", "implicit_midpoint"])
def test_odeint_output_time_on_a_point_of_the_grid(method, interp):
    t = vector(0, 0.5, 1).requires_grad_()
    options = {"step_size": 2.0**-6, "interp": interp}
    ys = fastnode.odeint(grow, vector(1), t, method=method, options=options)
    torch.testing.assert_close(ys[1], vector(EXACT[1]), rtol=1e-3, atol=1e-3)
    (found,) = torch.autograd.grad(ys[1].sum(), t)
    torch.testing.assert_close(found, vector(*EXACT), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("adjoint", ["backprop", "checkpoint"])
def test_steps_between_times_cost_no_more_evaluations_for_gradients(adjoint, monkeypatch):
    monkeypatch.setattr("fastnode.adjoints.discrete.retained_graph.ROOM", 0)
    counts = []
    for needed in (False, True):
        seen = []
        t = vector(0, 0.5, 1).requires_grad_(needed)

        def field(t, y, seen=seen):
            seen.append(0)
            return y * 1

        held = {} if adjoint == "backprop" else {"adjoint_params": ()}
        y0 = vector(1).requires_grad_()
        fastnode.solve(field, y0, t, method="rk4", adjoint=adjoint, **held).ys.sum().backward()
        counts.append(len(seen))
    assert counts[0] == counts[1]
