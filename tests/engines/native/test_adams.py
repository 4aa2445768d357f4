"""Adams steps in C++ beside those of the reference."""

from __future__ import annotations

import warnings

import pytest
import torch
from selection import slow

import fastnode
from fastnode import extension
from fastnode.engines import select
from fastnode.engines.native import joint as native
from tests.support.odeint_cases import Net, state

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)
METHODS = ["explicit_adams", "implicit_adams", "fixed_adams"]


def even(n=31):
    return torch.linspace(0, 1.5, n, dtype=torch.float64)


def uneven(n=31):
    t = even(n)
    return t + 0.02 * torch.sin(9 * t)


def both(field, y0, t, method, **arguments):
    """Solutions by both engines and numbers of evaluations."""
    found = []
    for engine in ("native", "reference"):
        field.nfe = 0
        ys = fastnode.odeint(field, y0, t, method=method, engine=engine, **arguments)
        found += [ys, field.nfe]
    return found


def check(field, y0, t, method, within=1e-13, **arguments):
    ours, nfe, theirs, wanted = both(field, y0, t, method, **arguments)
    pairs = zip(ours, theirs, strict=True) if isinstance(ours, tuple) else [(ours, theirs)]
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=within, atol=within)
    assert nfe == wanted


@pytest.mark.filterwarnings("ignore:.*converge")
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("tolerance", [slow(1e-2), 1e-6, slow(1e-14)])
@pytest.mark.parametrize("times", [even, uneven])
@pytest.mark.parametrize("max_order", [None, 4, 7, 12])
@pytest.mark.parametrize("method", METHODS)
def test_states_are_those_of_the_reference(method, max_order, times, tolerance, backward):
    options = {} if max_order is None else {"max_order": max_order}
    t = times().flip(0) if backward else times()
    # Of order 11 the explicit method is unstable here: rounding grows.
    within = 1e-8 if method == "explicit_adams" and max_order == 12 else 1e-11
    check(Net(), state(5, 4), t, method, within, options=options, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "options",
    [
        {"step_size": 0.05},
        {"step_size": 0.05, "interp": "cubic"},
        {"step_size": 0.05, "interp": "cubic", "perturb": True},
        {"perturb": True},
        {"max_iters": 1},
        {"grid_constructor": lambda func, y0, t: torch.cat([t[:1], even(20)[3:-1] - 0.07, t[-1:]])},
    ],
)
@pytest.mark.filterwarnings("ignore:.*converge")
@pytest.mark.parametrize("method", METHODS)
def test_options(method, options):
    t = torch.tensor([0.0, 0.33, 0.71, 0.72, 1.5], dtype=torch.float64)
    check(Net(), state(5, 4), t, method, 1e-12, options=options, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:max_order")
@pytest.mark.parametrize("max_order", [1, 2, 3])
def test_orders_that_never_leave_rk4(max_order):
    for method in METHODS:
        check(Net(), state(4), even(), method, options={"max_order": max_order})


@pytest.mark.filterwarnings("ignore:.*converge")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float32, 1e-5),
        (torch.float16, 4e-3),
        (torch.bfloat16, 3e-2),
        (torch.complex64, 1e-5),
        (torch.complex128, 1e-13),
    ],
)
def test_dtypes(method, dtype, tolerance):
    class Turning(torch.nn.Module):
        nfe = 0

        def forward(self, t, y):
            self.nfe += 1
            return (0.5j if y.is_complex() else 0.5) * y

    ours, _, theirs, _ = both(
        Turning(), state(3, dtype=dtype), even(16), method, rtol=1e-2, atol=1e-2
    )
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rtol", [1e-4, (1e-3, 1e-5), (torch.tensor([1e-3, 1e-4, 1e-5]), 1e-5)])
@pytest.mark.parametrize("method", METHODS)
def test_tuples_and_tolerances(method, rtol):
    class Pair(Net):
        def forward(self, t, y):
            return super().forward(t, y[0]), torch.cos(t) - y[1]

    y0 = (state(5, 4), torch.zeros(3, dtype=torch.float64))
    if isinstance(rtol, tuple) and isinstance(rtol[0], torch.Tensor):
        rtol = rtol[::-1]
    check(Pair(), y0, even(), method, 1e-12, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,)])
def test_shapes(shape):
    for method in METHODS:

        class Decay(torch.nn.Module):
            nfe = 0

            def forward(self, t, y):
                self.nfe += 1
                return -y

        check(Decay(), state(*shape), even(), method)


def test_a_corrector_that_does_not_converge():
    """It warns at the caller's line, once, and forgets a derivative as the reference does."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        check(
            Net(), state(5, 4), even(), "implicit_adams", 1e-12, options={"max_iters": 2}, rtol=1e-9
        )
    assert caught and {each.filename for each in caught} == {__file__}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="did not converge in 1 iterations"):
            options = {"max_iters": 1}
            fastnode.odeint(
                Net(),
                state(5, 4),
                even(),
                method="implicit_adams",
                options=options,
                engine="native",
            )


@pytest.mark.parametrize("method", METHODS)
def test_callbacks_and_errors_of_the_field(method):
    class Noting(Net):
        def __init__(self):
            super().__init__()
            self.steps = []

        def callback_step(self, t, y, h):
            self.steps.append((t.item(), y.clone(), h.item()))

    seen = []
    for engine in ("native", "reference"):
        field = Noting()
        fastnode.odeint(field, state(4), even(9), method=method, engine=engine, rtol=1e-3)
        seen.append(field.steps)
    assert len(seen[0]) == 8
    for (t, y, h), (t1, y1, h1) in zip(*seen, strict=True):
        assert (t, h) == (t1, h1)
        torch.testing.assert_close(y, y1, rtol=1e-12, atol=1e-12)

    def failing(t, y):
        if t > 0.8:
            raise ArithmeticError("of the field")
        return -y

    with pytest.raises(ArithmeticError, match="of the field"):
        fastnode.odeint(failing, state(4), even(9), method=method, engine="native")


@pytest.mark.filterwarnings("ignore:.*converge")
@pytest.mark.parametrize("times", [even, uneven])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_the_reference(method, times):
    found = []
    for engine in ("native", "reference"):
        field, y0 = Net(), state(5, 4).requires_grad_()
        options = {"step_size": 0.1, "interp": "cubic"} if times is even else None
        ys = fastnode.odeint(
            field, y0, times(12), method=method, engine=engine, options=options, rtol=1e-6
        )
        found.append(torch.autograd.grad(ys.square().sum(), [y0, *field.parameters()]))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_second_derivatives():
    y0 = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)

    def solve(y0):
        return fastnode.odeint(
            lambda t, y: torch.sin(3 * y),
            y0,
            even(6),
            method="implicit_adams",
            engine="native",
            rtol=1e-2,
            atol=1e-2,
        )

    assert torch.autograd.gradgradcheck(solve, (y0,))


def test_adjoint_of_torchdiffeq():
    """The continuous adjoint takes its own steps by the same loop."""
    field, y0 = Net(), state(5, 4).requires_grad_()
    found = []
    for solve in (fastnode.odeint_adjoint, fastnode.odeint):
        ys = solve(field, y0, even(41), method="implicit_adams", rtol=1e-8, atol=1e-8)
        found.append(torch.autograd.grad(ys[-1].sum(), [y0, *field.parameters()]))
    for adjoint, exact in zip(*found, strict=True):
        torch.testing.assert_close(adjoint, exact, rtol=1e-3, atol=1e-4)


def test_the_engine_that_is_chosen(monkeypatch):
    calls = []
    monkeypatch.setattr(
        select.native,
        "integrate_adams",
        lambda *args, **kept: calls.append(args) or native_integrate(*args, **kept),
    )
    for method in METHODS:
        fastnode.odeint(Net(), state(4), even(), method=method, rtol=1e-3)
    assert len(calls) == len(METHODS)
    # Where times need gradients the reference runs it, and a named engine says why not.
    t = even().requires_grad_()
    fastnode.odeint(Net(), state(4), t, method="explicit_adams")
    assert len(calls) == len(METHODS)
    with pytest.raises(ValueError, match="'native' cannot run.*times that need gradients"):
        fastnode.odeint(Net(), state(4), t, method="explicit_adams", engine="native")


native_integrate = native.integrate_adams
