"""What torchdiffeq's own tests check of its interface, of norms, events and gradients."""

from __future__ import annotations

import pytest
import torch

import fastnode
from fastnode._impl.odeint import SOLVERS

ADAPTIVE = ["dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun"]
SHAPES = [(), (1,), (2, 2)]
OPTIONS = {"default": {}, "empty": {"adjoint_options": {}}}
SEMINORM = {"adjoint_options": {"norm": "seminorm"}}


def growth(t, y):
    return tuple(y) if isinstance(y, tuple) else y * 1


def rms(x):
    return x.abs().pow(2).mean().sqrt()


def solved(y0, **arguments):
    params = (torch.rand(7, requires_grad=True), torch.rand((), requires_grad=True))
    t = torch.tensor([0.0, 1.0])
    return fastnode.odeint_adjoint(growth, y0, t, adjoint_params=params, **arguments)


def spy(options, expected):
    """Replaces the norm in use by one that also compares it with ``expected``."""
    norm, seen = options["norm"], []

    def compared(parts):
        assert isinstance(parts, tuple)
        value = norm(parts)
        assert isinstance(value, torch.Tensor) and value.shape == ()
        torch.testing.assert_close(value.double(), expected(*parts).double())
        seen.append([tuple(part.shape) for part in parts])
        return value

    options["norm"] = compared
    return seen


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("arguments", [*OPTIONS.values(), SEMINORM], ids=[*OPTIONS, "seminorm"])
def test_grad_fn_has_the_adjoint_norm_in_use(shape, arguments):
    def expected(t, y, a, *params):
        parts = [t, y, a] if arguments is SEMINORM else [t, y, a, *params]
        return torch.stack([rms(x) for x in parts]).max()

    ys = solved(torch.full(shape, 1.0), **arguments)
    seen = spy(ys.grad_fn.adjoint_options, expected)
    ys.sum().backward()
    assert seen and set(map(tuple, seen)) == {((), shape, shape, (7,), ())}


@pytest.mark.parametrize("arguments", [*OPTIONS.values(), SEMINORM], ids=[*OPTIONS, "seminorm"])
def test_grad_fn_of_a_tuple_state_has_the_norm_of_packed_states(arguments):
    def expected(t, y, a, *params):
        parts = [t, y[0], y[1:], a[0], a[1:], *(() if arguments is SEMINORM else params)]
        return torch.stack([rms(x) for x in parts]).max()

    y, z = solved((torch.tensor(1.0), torch.tensor([[0.5, 0.5], [0.1, 0.1]])), **arguments)
    node = y.grad_fn.next_functions[0][0].next_functions[0][0]
    seen = spy(node.adjoint_options, expected)
    (y.sum() + z.sum()).backward()
    assert seen and set(map(tuple, seen)) == {((), (5,), (5,), (7,), ())}


def test_a_replaced_adjoint_norm_decides_on_the_steps():
    class Field(torch.nn.Linear):
        count = 0

        def forward(self, t, y):
            self.count += 1
            return super().forward(y) * torch.cos(5 * t)

    torch.manual_seed(0)
    field, y0, counts = Field(3, 3), torch.randn(4, 3, requires_grad=True), []
    for factor in (1.0, 1e4):
        ys = fastnode.odeint_adjoint(field, y0, torch.tensor([0.0, 2.0]), rtol=1e-4, atol=1e-4)
        options = ys.grad_fn.adjoint_options
        norm = options["norm"]
        options["norm"] = lambda parts, norm=norm, factor=factor: factor * norm(parts)
        field.count = 0
        ys[-1].sum().backward()
        counts.append(field.count)
    assert counts[1] > 2 * counts[0]


def test_other_changed_adjoint_options_have_an_effect():
    field, y0 = torch.nn.Linear(2, 2), torch.ones(1, 2, requires_grad=True)
    count = [0]

    class Field(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = field

        def forward(self, t, y):
            count[0] += 1
            return self.inner(y)

    ys = fastnode.odeint_adjoint(Field(), y0, torch.tensor([0.0, 1.0]), method="euler")
    assert set(ys.grad_fn.adjoint_options) == {"norm"}
    ys.grad_fn.adjoint_options["step_size"] = 0.125
    count[0] = 0
    ys[-1].sum().backward()
    assert count[0] == 8


@pytest.mark.parametrize("lone", [True, False])
def test_a_norm_of_the_callers_gets_the_state_as_it_is(lone):
    seen = set()

    def norm(x):
        seen.add(x.shape if lone else tuple(part.shape for part in x))
        return rms(x if lone else x[0])

    y0 = torch.tensor(1.0) if lone else (torch.tensor(1.0), torch.ones(2, 2))
    fastnode.odeint(growth, y0, torch.tensor([0.0, 1.0]), options={"norm": norm})
    assert seen == {torch.Size([])} if lone else seen == {((), (2, 2))}


@pytest.mark.parametrize("method", ADAPTIVE)
def test_a_larger_norm_and_a_seminorm_order_the_evaluations(method):
    class Field(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = torch.nn.Sequential(
                torch.nn.Linear(2, 64), torch.nn.Tanh(), torch.nn.Linear(64, 2), torch.nn.Tanh()
            ).double()
            self.nfe = 0

        def forward(self, t, y):
            self.nfe += 1
            return self.net(y) * torch.sin(2 * t)

    y0 = torch.tensor([1.0, 2.0], dtype=torch.float64)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    field, counts = Field(), []
    for factor in (1, 10):
        norm = lambda x, factor=factor: factor * x.abs().max()  # noqa: E731
        field.nfe = 0
        fastnode.odeint(field, y0, t, method=method, rtol=1e-5, options={"norm": norm})
        counts.append(field.nfe)
    assert counts[0] <= counts[1]
    counts = []
    for options in ({"norm": "seminorm"}, {}):
        ys = fastnode.odeint_adjoint(
            field, y0, t, rtol=1e-6, atol=1e-6, method=method, adjoint_options=options
        )
        field.nfe = 0
        ys.sum().backward()
        counts.append(field.nfe)
    assert counts[0] <= counts[1]


class Constant(torch.nn.Module):
    """y = a t + b."""

    def __init__(self, dtype):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(0.2, dtype=dtype))
        self.b = torch.nn.Parameter(torch.tensor(3.0, dtype=dtype))

    def forward(self, t, y):
        return self.a + (y - (self.a * t + self.b)) ** 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("method", [*ADAPTIVE, "euler", "midpoint", "rk4", "implicit_adams"])
def test_events_end_where_the_solution_says(method, reverse, dtype):
    field = Constant(dtype)
    t = torch.linspace(1, 8, 10, dtype=dtype)
    t = t.flip(0) if reverse else t
    exact = (0.2 * t + 3.0)[:, None]
    options = {} if method in ADAPTIVE else {"step_size": 0.01, "interp": "cubic"}
    event_t, ys = fastnode.odeint(
        field,
        exact[0],
        t[:2],
        event_fn=lambda t, y: torch.sum(y - exact[2]),
        method=method,
        options=options,
    )
    # rk4 adds the terms of a step to a float32 state one by one, and rounds it as often.
    tolerance = 2e-4 if dtype == torch.float32 else 1e-4
    torch.testing.assert_close(ys[-1], exact[2], rtol=tolerance, atol=0)
    torch.testing.assert_close(event_t.to(dtype), t[2], rtol=tolerance, atol=0)


def test_gradients_of_an_event_by_the_adjoint_run_twice():
    field, y0 = Constant(torch.float64), torch.tensor([3.2], dtype=torch.float64)
    t = torch.tensor([1.0, 2.0], dtype=torch.float64)
    event_t, ys = fastnode.odeint_adjoint(
        field, y0, t, event_fn=lambda t, y: torch.sum(y - 4.6), method="dopri5"
    )
    torch.testing.assert_close(event_t.item(), 8.0, rtol=1e-4, atol=0)
    event_t.backward(retain_graph=True)
    ys[-1].sum().backward()
    assert field.a.grad.isfinite() and field.a.grad != 0


def test_a_grid_constructor_serves_both_passes():
    asked = []

    def grid(func, y0, t):
        asked.append(t.tolist())
        return torch.linspace(float(t[0]), float(t[-1]), 11)

    y0 = torch.tensor(1.0, requires_grad=True)
    ys = fastnode.odeint_adjoint(
        growth,
        y0,
        torch.tensor([0.0, 1.0]),
        method="euler",
        options={"grid_constructor": grid},
        adjoint_params=(),
    )
    torch.testing.assert_close(ys[1].item(), 1.1**10, rtol=1e-5, atol=0)
    ys[1].backward()
    torch.testing.assert_close(y0.grad.item(), 1.1**10, rtol=1e-5, atol=0)
    assert asked[0] == [0.0, 1.0] and asked[-1] == [1.0, 0.0]


def test_solvers_is_a_mapping_of_method_names():
    assert set(SOLVERS) == set(SOLVERS.keys()) == {name for name, _ in SOLVERS.items()}
    assert {"dopri5", "dopri8", "rk4", "scipy_solver", "implicit_adams"} <= set(SOLVERS)
    assert "adams" not in SOLVERS and len(SOLVERS) == len(list(SOLVERS))
    with pytest.raises(KeyError):
        SOLVERS["adams"]
    with pytest.raises(TypeError, match=r"call fastnode.odeint with\s+method='rk4'"):
        SOLVERS["rk4"](func=growth, y0=torch.ones(2))
    with pytest.raises(TypeError):
        SOLVERS["mine"] = object  # pyright: ignore
