from __future__ import annotations

import math

import pytest
import torch

import fastnode
from fastnode.engines.reference import newton
from fastnode.tableaus import IMPLICIT

DAMPING = ["implicit_euler", "radauIIA3", "radauIIA5", "sdirk2", "trbdf2"]


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture(params=["dense", "krylov"])
def linear_algebra(request, monkeypatch):
    if request.param == "krylov":
        monkeypatch.setattr(newton, "DENSE_LIMIT", 0)
    return request.param


def stiff(t, y):
    return -1000 * (y - torch.cos(t))


def smooth(t):
    return (1e6 * torch.cos(t) + 1000 * torch.sin(t)) / (1e6 + 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("method", DAMPING)
def test_implicit_methods_solve_a_stiff_equation(method, dtype):
    t = torch.linspace(0, 2, 21, dtype=torch.float64)
    y = fastnode.odeint(stiff, torch.tensor([0.0], dtype=dtype), t, method=method)
    assert (y[5:, 0] - smooth(t[5:])).abs().max() < 2e-4
    explicit = fastnode.odeint(stiff, y[0], t, method="euler")
    assert not explicit.abs().max() < 1e3


def test_van_der_pol_relaxes(linear_algebra):
    def field(t, y):
        return torch.stack([y[1], 1000 * (1 - y[0] ** 2) * y[1] - y[0]])

    t = torch.linspace(0, 1, 51, dtype=torch.float64)
    y = fastnode.odeint(field, double(2, 0), t, method="radauIIA5")
    # On the slow branch ln y - y^2 / 2 falls as -t / mu.
    wanted = math.log(2) - 2 + 1 / 1000
    found = math.log(y[-1, 0]) - y[-1, 0] ** 2 / 2
    assert found == pytest.approx(wanted, abs=1e-5)


def pendulum(weights):
    def field(t, y):
        return torch.tanh(y @ weights) * torch.cos(t) - y**2 / 10

    return field


@pytest.mark.parametrize(
    ("method", "linear_algebra"),
    [*((name, "dense") for name in IMPLICIT), ("gl4", "krylov"), ("trbdf2", "krylov")],
    indirect=["linear_algebra"],
)
def test_gradients_are_those_of_the_exact_stages(method, linear_algebra):
    y0 = double([0.3, -0.2], [1.0, 0.2]).requires_grad_()
    weights = double([0.5, -1.0], [0.8, 0.3]).requires_grad_()
    t = double(0.0, 0.5, 1.2).requires_grad_()

    def solve(y0, weights, t):
        return fastnode.odeint(pendulum(weights), y0, t, method=method)

    assert torch.autograd.gradcheck(solve, (y0, weights, t))


def test_gradients_pass_interpolation_and_perturbed_ends():
    y0, t = double(0.3, -0.2).requires_grad_(), double(0.0, 0.3, 1.0).requires_grad_()
    options = {"step_size": 0.4, "interp": "cubic", "perturb": True}

    def solve(y0, t):
        field = pendulum(double([0.5, -1.0], [0.8, 0.3]))
        return fastnode.odeint(field, y0, t, method="gl4", options=options)

    assert torch.autograd.gradcheck(solve, (y0, t))


def test_second_derivatives_are_refused_and_not_wrong():
    y0 = double(0.3).requires_grad_()
    y = fastnode.odeint(lambda t, y: -(y**2), y0, double(0, 1), method="trapezoid")
    (derivative,) = torch.autograd.grad(y[-1].sum(), y0, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        derivative.sum().backward()


@pytest.mark.parametrize("interp", ["linear", "cubic"])
@pytest.mark.parametrize("method", ["gl6", "trapezoid"])
def test_output_between_grid_points_is_interpolated(method, interp):
    t = torch.linspace(0, 1, 23, dtype=torch.float64)
    options = {"step_size": 0.1, "interp": interp}
    y = fastnode.odeint(lambda t, y: -y, double(1), t, method=method, options=options)
    worst = {"linear": 2e-3, "cubic": 1e-3 if method == "trapezoid" else 1e-6}[interp]
    assert (y[:, 0] - torch.exp(-t)).abs().max() < worst


@pytest.mark.parametrize("method", ["gl4", "sdirk2"])
def test_complex_and_tuple_states(method, linear_algebra):
    t = torch.linspace(0, 1, 21, dtype=torch.float64)

    def turn(t, y):
        return 2j * y + y.conj() / 5

    z = torch.tensor([1 + 0.5j, -0.2j], dtype=torch.complex128, requires_grad=True)
    found = fastnode.odeint(turn, z, t, method=method)
    wanted = fastnode.odeint(turn, z, t, method="dopri8", rtol=1e-9, atol=1e-10)
    bound = 1e-2 if method == "sdirk2" else 1e-5
    assert (found - wanted).abs().max() < bound
    (ours,) = torch.autograd.grad(found[-1].abs().sum(), z)
    (theirs,) = torch.autograd.grad(wanted[-1].abs().sum(), z)
    assert (ours - theirs).abs().max() < bound
    pair = (double([1.0, 2.0]), double(3.0))
    first, second = fastnode.odeint(
        lambda t, y: (-y[0] * y[1], y[1] * 0 - 1), pair, t, method=method
    )
    assert first.shape == (21, 1, 2) and second.shape == (21, 1)
    assert abs(second[-1].item() - 2) < 1e-12


@pytest.mark.parametrize("hidden", ["detached", "no_grad", "numpy"])
def test_a_field_that_autograd_does_not_see_is_differenced(hidden):
    def field(t, y):
        if hidden == "numpy":
            return torch.from_numpy(stiff(t, y).detach().numpy().copy())
        with torch.no_grad():
            value = stiff(t, y)
        return value.detach()

    t = torch.linspace(0, 2, 11, dtype=torch.float64)
    y = fastnode.odeint(field, double(1), t, method="radauIIA5")
    assert (y[:, 0] - smooth(t)).abs()[1:].max() < 1e-6


def test_a_field_that_autograd_does_not_see_is_a_constant_to_it():
    y0 = double(1).requires_grad_()
    y = fastnode.odeint(lambda t, y: -y.detach(), y0, double(0, 1), method="gl4")
    (derivative,) = torch.autograd.grad(y[-1].sum(), y0)
    assert derivative == 1


class Reversed(torch.autograd.Function):
    """-1000 y with the derivative of +1000 y, as a layer that reverses gradients."""

    @staticmethod
    def forward(ctx, y):
        return -1000 * y

    @staticmethod
    def backward(ctx, grad):
        return 1000 * grad


def test_implicit_differences_custom_autograd_functions():
    t = double(0, 1, 2, 3)
    y = fastnode.odeint(lambda t, y: Reversed.apply(y) + 1000, double(0), t, method="radauIIA3")
    assert (y[1:] - 1).abs().max() < 1e-2


class Unbatched(torch.autograd.Function):
    """-y, with a backward that vmap cannot run."""

    @staticmethod
    def forward(ctx, y):
        return -y

    @staticmethod
    def backward(ctx, grad):
        assert grad.abs().sum().item() > 0
        return -grad


def test_a_backward_that_cannot_be_batched_is_run_row_by_row():
    t = double(0, 0.5, 1)
    y = fastnode.odeint(lambda t, y: Unbatched.apply(y), double(1, 2), t, method="gl6")
    assert (y[-1] - double(1, 2) * math.exp(-1)).abs().max() < 1e-6


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_solves_without_recording(mode):
    net = torch.nn.Linear(3, 3, dtype=torch.float64)
    with mode():
        y = fastnode.odeint(lambda t, y: net(y), double(1, 2, 3), double(0, 1), method="trbdf2")
    assert not y.requires_grad and y.isfinite().all()


def test_low_precision_states():
    y = fastnode.odeint(
        lambda t, y: -50 * y, torch.ones(3, dtype=torch.bfloat16), double(0, 0.1, 1), method="gl4"
    )
    assert y.dtype == torch.bfloat16 and y.isfinite().all()


def test_the_same_solve_gives_the_same_bits(linear_algebra):
    field = pendulum(double([0.5, -1.0], [0.8, 0.3]))
    t = torch.linspace(0, 2, 9, dtype=torch.float64)
    runs = [fastnode.odeint(field, double(0.3, -0.2), t, method="gl6") for _ in range(3)]
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])


def test_newton_matrices_are_kept_while_they_serve():
    calls = []

    def field(t, y):
        calls.append(t.item())
        return -1000 * (y - torch.cos(t))

    t = torch.linspace(0, 2, 101, dtype=torch.float64)
    fastnode.odeint(field, double(1), t, method="implicit_euler")
    # A step begins with an evaluation; a linear field takes one iteration and its confirmation.
    assert len(calls) <= 3.2 * 100


class TestErrors:
    def test_iterations_that_run_out(self, linear_algebra):
        with pytest.raises(fastnode.StagesNotSolved, match=r"t = 0 with h = 0.5.*max_iters") as e:
            fastnode.odeint(
                lambda t, y: -(y**3),
                double(2),
                double(0, 0.5),
                method="gl4",
                options={"max_iters": 1},
            )
        assert e.value.time == 0 and e.value.step == 0.5
        assert isinstance(e.value, fastnode.SolverError)

    def test_stage_equations_without_a_solution(self):
        with pytest.raises(fastnode.StagesNotSolved, match="implicit_euler"):
            fastnode.odeint(lambda t, y: 1 + y**2, double(1), double(0, 3), method="implicit_euler")

    def test_a_field_that_is_not_finite(self):
        with pytest.raises(fastnode.NonFiniteState, match="t = 0.5") as e:
            fastnode.odeint(
                lambda t, y: y * (torch.nan if t > 0.6 else 1),
                double(1),
                double(0, 0.5, 1),
                method="radauIIA3",
            )
        assert e.value.time == 0.5 and e.value.step == 0.5

    def test_exceptions_of_the_field_arrive_unchanged(self):
        class Odd(Exception):
            pass

        def field(t, y):
            if t > 0.2:
                raise Odd
            return -y

        with pytest.raises(Odd):
            fastnode.odeint(field, double(1), double(0, 0.1, 0.3), method="sdirk2")

    @pytest.mark.parametrize("value", [0, -1, 1.5])
    def test_max_iters_must_be_a_positive_whole_number(self, value):
        with pytest.raises(ValueError, match="max_iters"):
            fastnode.odeint(
                stiff, double(1), double(0, 1), method="gl4", options={"max_iters": value}
            )


@pytest.mark.parametrize("perturb", [False, True])
@pytest.mark.parametrize("method", [*IMPLICIT, "euler", "rk4", "heun3", "explicit_adams"])
def test_each_step_begins_with_an_evaluation(method, perturb):
    """As in torchdiffeq: the first of each step, just after its beginning with ``perturb``."""
    times, begins = [], []

    class Field(torch.nn.Module):
        def forward(self, t, y):
            times.append(t.item())
            return -y

        def callback_step(self, t, y, h):
            begins.append(len(times))

    options = {"step_size": 0.25, "perturb": perturb}
    fastnode.odeint(Field(), double(1.0), double(0.0, 1.0), method=method, options=options)
    wanted = double(0.0, 0.25, 0.5, 0.75)
    if perturb:
        wanted = torch.nextafter(wanted, double(math.inf))
    assert [times[i] for i in begins] == wanted.tolist()


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0)])
@pytest.mark.parametrize("method", IMPLICIT)
def test_empty_states(method, shape, dtype, grad):
    y0 = torch.zeros(shape, dtype=dtype, requires_grad=grad)
    t = double(0.0, 0.5, 1.0)
    for interp in ("linear", "cubic"):
        options = {"step_size": 0.3, "interp": interp}
        ys = fastnode.odeint(lambda t, y: -y, y0, t, method=method, options=options)
        assert ys.shape == (3, *shape) and ys.dtype == dtype
    pair = fastnode.odeint(lambda t, y: (-y[0], -y[1]), (y0, y0), t, method=method)
    assert [each.shape for each in pair] == [(3, *shape)] * 2
    found = fastnode.solve(lambda t, y: -y, y0, t, method=method, steps=4)
    assert found.ys.shape == (3, *shape)
    if grad:
        ys.real.sum().backward()
        assert y0.grad is not None and y0.grad.shape == shape


def test_empty_states_under_vmap():
    def solve(y0):
        return fastnode.odeint(lambda t, y: -y, y0, double(0.0, 1.0), method="gl4")

    assert torch.func.vmap(solve)(torch.zeros(3, 0)).shape == (3, 2, 0)
