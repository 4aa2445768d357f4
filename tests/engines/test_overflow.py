"""Where a state comes near overflow, or a field near the border of its domain, a solve ends.

Between the steps that overflow and those that leave y + h k at y there is nothing left: each test
counts steps, so that a loop that goes on fails instead of hanging.
"""

import math

import pytest
import torch

import fastnode
from fastnode.extension import AVAILABLE
from fastnode.nn import MLPField

ENGINES = ["reference", "native"] if AVAILABLE else ["reference"]
needs_extension = pytest.mark.skipif(not AVAILABLE, reason="needs the extension")
#: Of a solve that ends where it must.
MOST = 2000
ENDS = (fastnode.NonFiniteState, fastnode.StepSizeUnderflow)


def growth(rate):
    return lambda t, y: rate * y


def growing_mlp(dim=1):
    """20 y for positive states."""
    field = MLPField(dim, dim, 2, "relu", "none", False)
    with torch.no_grad():
        first, last = field.parameters()
        first.copy_(torch.eye(dim))
        last.copy_(20 * torch.eye(dim))
    return field


def ends(field, y0, end, **options):
    ts = torch.tensor([0.0, end], dtype=torch.float64)
    with pytest.raises(ENDS) as caught:
        fastnode.solve(field, y0, ts, max_num_steps=MOST, **options)
    return caught.value


@pytest.mark.parametrize("engine", ENGINES)
class TestOverflow:
    @pytest.mark.parametrize("per_sample", [False, True])
    @pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3", "dopri8"])
    def test_of_the_derivative(self, engine, per_sample, method):
        if engine == "native" and per_sample and method == "dopri8":
            pytest.skip("it takes no methods with further stages")
        y0 = torch.ones(3, 2)
        error = ends(growth(20), y0, 10.0, engine=engine, per_sample=per_sample, method=method)
        assert error.time == pytest.approx(math.log(3.4e38 / 20) / 20, rel=0.03)

    @pytest.mark.parametrize("per_sample", [False, True])
    @pytest.mark.parametrize("size", [1e30, 1e37])
    def test_near_the_start(self, engine, per_sample, size):
        ends(growth(20), torch.full((1, 1), size), 10.0, engine=engine, per_sample=per_sample)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_of_other_dtypes(self, engine, dtype):
        start = {torch.float16: 1e3, torch.bfloat16: 1e36, torch.float64: 1e300}[dtype]
        y0 = torch.full((2,), start, dtype=dtype)
        error = ends(growth(10), y0, 10.0, engine=engine, rtol=1e-3, atol=1e-3)
        limit = torch.finfo(dtype).max / 10
        assert error.time == pytest.approx(math.log(limit / start) / 10, rel=0.05)

    def test_of_few_elements_among_others(self, engine):
        """Elements that cross zero change however short a step is."""
        turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])

        def field(t, y):
            return torch.cat([20 * y[:1], (y[1:].reshape(-1, 2) @ turn).reshape(-1)])

        y0 = torch.cat(
            [torch.ones(1), torch.randn(400, generator=torch.Generator().manual_seed(0))]
        )
        ends(field, y0, 10.0, engine=engine)

    @pytest.mark.parametrize("per_sample", [False, True])
    def test_of_the_domain(self, engine, per_sample):
        def field(t, y):
            return 1 + (1 - y).sqrt()

        y0 = torch.full((2, 1), 0.9)
        error = ends(field, y0, 1.0, engine=engine, per_sample=per_sample)
        assert isinstance(error, fastnode.NonFiniteState)

    def test_message_names_the_time_and_the_infinity(self, engine):
        with pytest.raises(fastnode.NonFiniteState, match=r"returned .*infinity near t = 4\.2"):
            fastnode.odeint(
                growth(20),
                torch.ones(1),
                torch.tensor([0.0, 10.0]),
                options={"max_num_steps": MOST},
                rtol=1e-4,
                atol=1e-4,
                engine=engine,
            )

    @pytest.mark.parametrize("per_sample", [False, True])
    def test_single_attempts_that_fail_do_not_end_a_solve(self, engine, per_sample):
        """Every fortieth evaluation is NaN."""
        count = 0

        def field(t, y):
            nonlocal count
            count += 1
            return torch.full_like(y, -0.01 if count % 40 else torch.nan)

        ts = torch.tensor([0.0, 30.0, 100.0], dtype=torch.float64)
        control = fastnode.Controller(max_step=0.25)
        found = fastnode.solve(
            field,
            torch.ones(2, 1),
            ts,
            engine=engine,
            per_sample=per_sample,
            controller=control,
            first_step=0.25,
        )
        rejected = torch.as_tensor(found.rejected).max()
        assert rejected > 20
        torch.testing.assert_close(found.ys[-1], torch.ones(2, 1) - 0.01 * (ts[-1] - ts[0]).float())


@needs_extension
@pytest.mark.parametrize("batch", [1, 200])
@pytest.mark.parametrize("per_sample", [False, True])
def test_fused_solves_end_at_overflow(per_sample, batch):
    error = ends(growing_mlp(), torch.ones(batch, 1), 10.0, engine="fused", per_sample=per_sample)
    assert error.time == pytest.approx(math.log(3.4e38 / 20) / 20, rel=0.03)


@needs_extension
@pytest.mark.parametrize("adjoint", ["checkpoint", fastnode.Revolve(3)])
def test_adjoints_of_fused_solves_end_at_overflow(adjoint):
    ends(growing_mlp(), torch.ones(4, 1, requires_grad=True), 10.0, adjoint=adjoint)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", ["euler", "rk4", "explicit_adams"])
def test_fixed_steps_show_the_infinity(engine, method):
    """As in torchdiffeq: nothing is hidden, and nothing goes on."""
    t = torch.linspace(0, 10, 101)
    ys = fastnode.odeint(growth(20), torch.ones(1), t, method=method, engine=engine)
    assert not ys[-1].isfinite()


def test_events_of_solves_that_overflow():
    """Times have no end there: what is short is measured by the steps."""
    count = 0

    def field(t, y):
        nonlocal count
        count += 1
        if count > 20 * MOST:
            raise AssertionError("goes on")
        return 20 * y

    with pytest.raises(ENDS):
        fastnode.odeint_event(
            field,
            torch.ones(1),
            torch.tensor(0.0),
            event_fn=lambda t, y: y + 1,
            odeint_interface=fastnode.odeint,
        )
