"""A step that is small beside the state is rounded once, as a number of the state's size."""

from __future__ import annotations

import pytest
import torch

import fastnode

ENGINES = ["reference", "native", "fused"]


STEP = 2**-7


def solved(dtype, times, **options):
    """From states of size 1 to 1.1, in one step."""
    torch.manual_seed(0)
    field = fastnode.nn.MLPField(3, 8, 2).to(dtype)
    y0 = 1 + torch.rand(50, 3) / 10
    times = torch.tensor([0, *times], dtype=torch.float64)
    with torch.no_grad():
        return fastnode.solve(field, y0.to(dtype), times, rtol=1.0, atol=1.0, **options)


def check(times, **options):
    found, exact = (solved(dtype, times, **options) for dtype in (torch.float32, torch.float64))
    assert torch.as_tensor(found.accepted).max() == 1
    # Half of eps is the one rounding, the rest those of the increment itself.
    assert (found.ys.double() - exact.ys).abs().max() <= 0.6 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per sample"])
@pytest.mark.parametrize(
    ("engine", "method"),
    [
        *((engine, method) for engine in ENGINES for method in ("bosh3", "tsit5")),
        # Of more terms than the kernels keep in registers; native steps samples of it jointly.
        ("reference", "dopri8"),
        ("fused", "dopri8"),
    ],
)
def test_adaptive_steps_round_the_state_once(engine, method, per_sample):
    options = {"per_sample": per_sample, "first_step": STEP}
    check([STEP / 4, STEP], engine=engine, method=method, **options)


@pytest.mark.parametrize("method", ["midpoint", "rk4"])
@pytest.mark.parametrize("engine", ENGINES)
def test_fixed_steps_round_the_state_once(engine, method):
    check([STEP], engine=engine, method=method, steps=1)
