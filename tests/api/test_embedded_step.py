"""One embedded step against its definition: values, gradients, constants."""

import math

import pytest
import torch
from embedded_step_cases import make_field, make_state, parameter_gradients, reference_step

import fastnode
from fastnode.engines.methods import ADAPTIVE

TOLERANCES = {"rtol": 1e-4, "atol": 1e-5}
CASES = [(method, per_sample) for method in ADAPTIVE for per_sample in (False, True)]


@pytest.fixture
def field():
    return make_field()


@pytest.fixture
def y0():
    return make_state()


@pytest.mark.parametrize(("method", "per_sample"), CASES)
@pytest.mark.parametrize("h", [1.5, -1.5])
def test_step_agrees_with_its_definition(field, y0, method, per_sample, h):
    options = {"method": method, **TOLERANCES, "per_sample": per_sample}
    step = fastnode.embedded_step(field, 0.2, y0, h, **options)
    y1, e, norm, stiffness = reference_step(field, 0.2, y0, h, **options)
    expected = {"y": y1, "error": e, "norm": norm, "stiffness": stiffness}
    for name, value in expected.items():
        mine = getattr(step, name)
        torch.testing.assert_close(mine, value, rtol=1e-9, atol=1e-12, equal_nan=True)
        if value.isnan().any():
            continue
        weights = torch.rand_like(value)
        torch.testing.assert_close(
            parameter_gradients((weights * mine).sum(), field),
            parameter_gradients((weights * value).sum(), field),
            rtol=1e-6,
            atol=1e-9,
        )
    assert bool(stiffness.isnan().any()) == (method not in ("dopri5", "tsit5", "dopri8"))


@pytest.mark.parametrize("per_sample", [False, True])
def test_state_first_derivative_and_size_are_constants(field, y0, per_sample):
    y, h = y0.requires_grad_(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    seen = []

    def func(t, z):
        seen.append(torch.is_grad_enabled())
        return field(t, z)

    step = fastnode.embedded_step(func, 0.2, y, h, per_sample=per_sample)
    step.norm.sum().backward()
    assert y.grad is None and h.grad is None
    assert seen == [False] + [True] * 6


@pytest.mark.parametrize("per_sample", [False, True])
def test_without_constants_everything_has_a_gradient(field, y0, per_sample):
    y = y0.clone().requires_grad_()
    h = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    t = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    options = {**TOLERANCES, "per_sample": per_sample}
    step = fastnode.embedded_step(field, t, y, h, **options, constants=())
    expected = reference_step(field, t, y, h, method="tsit5", held=False, **options)
    for mine, value in zip((step.norm, step.stiffness), expected[2:], strict=True):
        sources = [t, y, h, *field.parameters()]
        found, wanted = (
            torch.autograd.grad(x.sum(), sources, retain_graph=True) for x in (mine, value)
        )
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("per_sample", [False, True])
def test_gradcheck(field, y0, per_sample):
    t = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    h = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    y = y0[:2].clone().requires_grad_()
    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)

    def estimates(t, y, h, scale):
        step = fastnode.embedded_step(
            lambda t, y, s: s * field(t, y),
            t,
            y,
            h,
            args=(scale,),
            per_sample=per_sample,
            constants=(),
        )
        return step.y, step.error, step.norm, step.stiffness

    assert torch.autograd.gradcheck(estimates, (t, y, h, scale), atol=1e-4, rtol=1e-3)


def test_each_sample_steps_alone(field, y0):
    t, h = torch.rand(4, dtype=torch.float64), torch.tensor([0.1, -0.2, 0.3, 0.4])
    together = fastnode.embedded_step(field, t, y0, h, per_sample=True)
    for i in range(4):
        alone = fastnode.embedded_step(field, t[i], y0[i], h[i], **{})
        torch.testing.assert_close(together.y[i], alone.y)
        torch.testing.assert_close(together.norm[i], alone.norm)
        torch.testing.assert_close(together.stiffness[i], alone.stiffness)


def test_it_is_the_step_that_a_solve_takes(field, y0):
    ts = torch.tensor([0.0, 1.0], dtype=torch.float64)
    solution = fastnode.solve(field, y0, ts, **TOLERANCES, save="steps")
    steps = solution.steps
    for i, h in enumerate(steps.h.tolist()):
        mine = fastnode.embedded_step(field, steps.times[i], steps.states[i], h, **TOLERANCES)
        torch.testing.assert_close(mine.y, steps.states[i + 1])
        torch.testing.assert_close(mine.norm, steps.error[i])
        torch.testing.assert_close(mine.stiffness * abs(h), steps.stiffness[i])


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_tuple_is_measured_by_its_worst_part(field, y0, per_sample):
    small, large = y0[:, :1] * 0.01, y0

    def func(t, state):
        return -state[0], field(t, state[1])

    step = fastnode.embedded_step(func, 0.1, (small, large), 0.3, per_sample=per_sample)
    parts = [
        fastnode.embedded_step(f, 0.1, y, 0.3, per_sample=per_sample)
        for f, y in ((lambda t, y: -y, small), (field, large))
    ]
    torch.testing.assert_close(step.norm, torch.maximum(parts[0].norm, parts[1].norm))
    for mine, part in zip(step.error, parts, strict=True):
        torch.testing.assert_close(mine, part.error)


def test_complex_states(field, y0):
    step = fastnode.embedded_step(lambda t, y: 1j * y, 0.0, torch.complex(y0, -y0), 0.1)
    exact = torch.complex(y0, -y0) * complex(math.cos(0.1), math.sin(0.1))
    torch.testing.assert_close(step.y, exact)
    assert step.norm.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("per_sample", [False, True])
def test_narrow_states(field, y0, dtype, per_sample):
    wide = fastnode.embedded_step(field, 0.2, y0, 1.0, per_sample=per_sample, rtol=0.1, atol=0.1)
    step = fastnode.embedded_step(
        field.to(dtype), 0.2, y0.to(dtype), 1.0, per_sample=per_sample, rtol=0.1, atol=0.1
    )
    assert step.y.dtype == dtype and step.norm.dtype == torch.float32
    torch.testing.assert_close(step.norm.double(), wide.norm, rtol=0.3, atol=0.02)


def test_no_error_has_a_gradient_of_zero(y0):
    rate = torch.zeros((), dtype=torch.float64, requires_grad=True)
    step = fastnode.embedded_step(lambda t, y: rate * y, 0.0, y0, 0.1)
    assert step.norm == 0 and step.stiffness == 0
    step.norm.backward()
    assert rate.grad.isfinite()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"method": "rk4"}, ValueError, "method must have an error estimate .* got 'rk4'"),
        ({"method": "heun5"}, ValueError, "method must have an error estimate .* got 'heun5'"),
        ({"h": 0.0}, ValueError, "h must be finite and large enough to change t = 0.5, got 0.0"),
        ({"h": math.nan}, ValueError, "h must be finite"),
        ({"h": "0.1"}, TypeError, "h must be a number or a tensor, got str"),
        ({"t": None}, TypeError, "t must be a number or a tensor, got NoneType"),
        ({"t": torch.zeros(4)}, ValueError, "t must be one number"),
        ({"h": torch.ones(3), "per_sample": True}, ValueError, r"have shape \[4\], got \(3,\)"),
        ({"rtol": -1.0}, ValueError, "rtol must not be negative"),
        ({"constants": ("k2",)}, ValueError, "constants must be among y, k1, h"),
        ({"args": 3.0}, TypeError, "args"),
    ],
)
def test_bad_arguments_are_named(field, y0, change, error, words):
    arguments = {"t": 0.5, "y": y0, "h": 0.1, **change}
    with pytest.raises(error, match=words):
        fastnode.embedded_step(field, **arguments)
