from __future__ import annotations

import pytest
import torch
import torchdiffeq
from adjoint_cases import Y0, Field, T, decay
from selection import slow

import fastnode

LIBRARIES = [fastnode, torchdiffeq]


def loss_gradients(library, field, y0=Y0, t=T, **options):
    y0, t = y0.clone().requires_grad_(), t.clone().requires_grad_()
    y = library.odeint_adjoint(field, y0, t, **options)
    weights = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).reshape(y.shape)
    return y, torch.autograd.grad((y * weights).sum(), (y0, t, *field.parameters()))


TIGHT = {"rtol": 1e-10, "atol": 1e-11}


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        TIGHT,
        {**TIGHT, "adjoint_options": {"norm": "seminorm"}},
        {**TIGHT, "options": {"norm": lambda y: y.abs().max()}},
        {**TIGHT, "adjoint_options": {"norm": lambda parts: parts[2].abs().max()}},
        {**TIGHT, "options": {"first_step": 0.05, "max_step": 0.1}},
        {**TIGHT, "adjoint_options": {"jump_t": torch.tensor([0.7]).double()}},
        {"rtol": 1e-12, "atol": 1e-12, "adjoint_rtol": 1e-9, "adjoint_atol": 1e-10},
        slow({**TIGHT, "adjoint_method": "rk4", "adjoint_options": {"step_size": 0.005}}),
        slow({"method": "rk4", "options": {"step_size": 0.005}}),
        {"method": "implicit_adams", "options": {"step_size": 0.01}},
    ],
)
def test_values_and_gradients_agree_with_torchdiffeq(options, backwards):
    t = T.flip(0) if backwards else T
    results = [loss_gradients(library, Field(), t=t, **options) for library in LIBRARIES]
    torch.testing.assert_close(*results, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun2", "heun3", "rk4"])
def test_odeint_adjoint_fixed_steps_match_torchdiffeq(method):
    results = []
    for library in LIBRARIES:
        y, (by_y0, _, *by_params) = loss_gradients(library, Field(), method=method)
        results.append((y, by_y0, by_params[:2]))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-13)


def test_gradients_of_tuple_states_agree_with_torchdiffeq():
    results = []
    for library in LIBRARIES:
        field, a, b = Field(), Y0.clone().requires_grad_(), torch.ones(1, 3).double()
        b.requires_grad_()
        first, second = library.odeint_adjoint(
            lambda t, y, field=field: (field(t, y[0]) * y[1].sum(), -y[1] * y[0].sum()),
            (a, b),
            T,
            adjoint_params=tuple(field.parameters()),
            **TIGHT,
        )
        loss = first.square().sum() + second[1].sum()
        gradients = torch.autograd.grad(loss, (a, b, *field.used.parameters()))
        results.append((first, second, gradients))
    torch.testing.assert_close(*results, rtol=1e-7, atol=1e-8)


def test_odeint_adjoint_jump_times_have_gradients():
    """y' = 1 before t = 0.5 and 3 after it: starting later loses one unit for each unit of time."""
    t = T.clone().requires_grad_()
    y0 = torch.zeros(1, dtype=torch.float64)
    y = fastnode.odeint_adjoint(
        lambda t, y: torch.ones_like(y) * (1.0 if t < 0.5 else 3.0),
        y0.requires_grad_(),
        t,
        adjoint_params=(),
        options={"jump_t": [0.5]},
    )
    (by_t,) = torch.autograd.grad(y[-1].sum(), t)
    torch.testing.assert_close(by_t, torch.tensor([-1.0, 0.0, 3.0], dtype=torch.float64))


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_adjoint_callbacks_are_called_as_by_torchdiffeq(method):
    """With the first step given, the steps are the same ones."""
    logs = []
    names = ("step", "accept_step") if method == "dopri5" else ("step",)
    for library in LIBRARIES:
        field, log = Field(), []
        for name in names:
            note = lambda t, y, dt, name=name, log=log: log.append(  # noqa: E731
                (name, t, dt, *(part.clone() for part in y))
            )
            setattr(field, f"callback_{name}_adjoint", note)
        size = {"first_step": 0.1, "max_step": 0.1} if names[1:] else {"step_size": 0.1}
        y = library.odeint_adjoint(field, Y0, T, method=method, rtol=1e-3, atol=1e-3, options=size)
        assert not log
        y[-1].sum().backward()
        logs.append(log)
    ours, theirs = logs
    # torchdiffeq steps beyond the end of an interval, we do not: all but the last one agree.
    count = 8 if method == "dopri5" else len(theirs)
    assert len(ours) >= count and (method == "dopri5" or len(ours) == len(theirs))
    for (name, t, dt, *state), (their_name, their_t, their_dt, *their_state) in zip(
        ours[:count], theirs[:count], strict=True
    ):
        assert name == their_name and len(state) == len(their_state) == 3 + 4
        torch.testing.assert_close((t, dt), (their_t, their_dt))
        torch.testing.assert_close(state[1:5], their_state[1:5], rtol=1e-4, atol=1e-6)


def test_callbacks_that_a_method_does_not_have_are_named():
    field = Field()
    field.callback_accept_step_adjoint = lambda t, y, dt: None
    y = fastnode.odeint_adjoint(field, Y0, T, method="euler")
    with pytest.warns(UserWarning, match="callback_accept_step_adjoint"):
        y.sum().backward()


def test_what_is_not_in_adjoint_params_has_no_gradient():
    field, y0 = Field(), Y0.clone().requires_grad_()
    y = fastnode.odeint_adjoint(field, y0, T, adjoint_params=(field.used.bias,))
    y.sum().backward()
    assert field.used.weight.grad is None and field.used.bias.grad.any() and y0.grad.any()


def test_a_tensor_given_twice_counts_once():
    wanted = loss_gradients(fastnode, Field())[1]
    field = Field()
    found = loss_gradients(
        fastnode, field, adjoint_params=[*field.parameters(), *field.parameters()]
    )[1]
    torch.testing.assert_close(found, wanted)


def test_parameters_that_need_a_graph_of_their_own():
    """A weight that is made of others before the solve is differentiated at every stage."""
    results = []
    for solve in (fastnode.odeint, fastnode.odeint_adjoint):
        root = torch.tensor([0.5, -1.0], dtype=torch.float64, requires_grad=True)
        weight = torch.tanh(root) ** 2
        more = {} if solve is fastnode.odeint else {"adjoint_params": (root,)}
        y = solve(lambda t, y, w=weight: -w * y, Y0, T, **TIGHT, **more)
        results.append(torch.autograd.grad(y.sum(), root)[0])
    torch.testing.assert_close(*results, rtol=1e-7, atol=1e-8)


def test_arguments_have_gradients():
    rate = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    y = fastnode.odeint_adjoint(
        lambda t, y, rate, power: -rate * y**power,
        Y0,
        T,
        adjoint_params=(),
        args=(rate, 1),
        **TIGHT,
    )
    (found,) = torch.autograd.grad(y[-1].sum(), rate)
    wanted = -(Y0 * torch.exp(-rate.detach())).sum()
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=0)


@pytest.mark.parametrize("library", LIBRARIES)
def test_one_time_alone(library):
    field, y0 = Field(), Y0.clone().requires_grad_()
    library.odeint_adjoint(field, y0, T[:1]).sum().backward()
    assert torch.equal(y0.grad, torch.ones(2).double()) and not field.used.weight.grad.any()


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


@pytest.mark.parametrize("options", [{"method": "rk4", "options": {"step_size": 0.005}}, TIGHT])
def test_second_derivatives(options):
    field, y0 = Field(), Y0.clone().requires_grad_()

    def hessian(solve):
        y = solve(field, y0, T, **options)
        inputs = (y0, field.used.weight)
        first = torch.autograd.grad(y[-1].square().sum(), inputs, create_graph=True)
        return first, torch.autograd.grad(sum(g.square().sum() for g in first), inputs)

    torch.testing.assert_close(
        hessian(fastnode.odeint_adjoint), hessian(fastnode.odeint), rtol=1e-6, atol=1e-7
    )


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
