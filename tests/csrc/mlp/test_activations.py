"""Activations of the fused engine, by each instruction set that this machine has."""

import math

import numpy as np
import pytest
import torch

import fastnode
from fastnode import extension
from fastnode.engines.fused import request as fused_request
from fastnode.engines.fused.mlp import ACTIVATIONS
from fastnode.nn import MLPField

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)
NAMES = list(ACTIVATIONS)
SETS = extension.native().mlp_instruction_sets() if extension.AVAILABLE else []


def activate(instructions, name, x):
    return extension.native().mlp_activate(instructions, NAMES.index(name), x)


def exact_value(name, x):
    """In float64, with the digits that torch's gelu loses in its tail."""
    if name == "gelu":
        return x * 0.5 * torch.special.erfc(-x * math.sqrt(0.5))
    return ACTIVATIONS[name](x)


def ulps(found: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Distance of float32 numbers from float64 ones in units of the last place of the latter."""
    rounded = exact.float()
    size = rounded.abs()
    finite = size.clamp(max=float(np.finfo(np.float32).max))
    below = torch.nextafter(finite, torch.zeros(()))
    unit = (finite.double() - below.double()).clamp(min=2.0**-149)
    same = (found == rounded) | (found.isnan() & rounded.isnan())
    return torch.where(same, 0.0, (found.double() - exact).abs() / unit)


def every(step: int) -> torch.Tensor:
    """Every step-th float32 number of all there are, NaN and infinities included."""
    bits = torch.arange(-(2**31), 2**31, step, dtype=torch.int64).to(torch.int32)
    return bits.view(torch.float32)


@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("name", NAMES)
def test_activations_are_within_two_units_over_the_whole_range(name, instructions):
    ordinary = torch.cat([sign * torch.logspace(-6, 2.1, 1_000_001) for sign in (-1, 1)])
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 20.0, 1e-45, -1e-45, -104.0])
    x = torch.cat([every(40_009), ordinary, special])
    exact = exact_value(name, x.double())
    assert ulps(activate(instructions, name, x), exact).max() <= 2


@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("name", NAMES)
def test_activations_in_float64(name, instructions):
    x = torch.linspace(-30, 30, 20_011, dtype=torch.float64)
    found, exact = activate(instructions, name, x), exact_value(name, x)
    torch.testing.assert_close(found, exact, rtol=2e-14, atol=1e-300)


@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("name", NAMES)
def test_no_number_depends_on_its_neighbours(name, instructions):
    """Kernels that treat a few numbers at once may not tell a sample's from those beside it."""
    generator = torch.Generator().manual_seed(0)
    x = 6 * torch.randn(10_000, generator=generator)
    x[::1000] = torch.tensor([math.nan, math.inf, -math.inf, 1e30, -1e30] * 2)
    order = torch.randperm(len(x), generator=generator)
    straight, shuffled = (activate(instructions, name, each) for each in (x, x[order]))
    assert torch.equal(straight[order].nan_to_num(7.0), shuffled.nan_to_num(7.0))


@pytest.mark.skipif(2 not in SETS, reason="no AVX-512")
@pytest.mark.parametrize(
    "name, end", [("tanh", 20), ("sigmoid", 12), ("silu", 12), ("softplus", 12), ("gelu", 5.9)]
)
def test_tables_are_as_near_as_they_say(name, end):
    """The bound that tables_avx512-inl.h states."""
    x = torch.cat([torch.logspace(-6, math.log10(end), 1_000_001), torch.linspace(0, end, 500_000)])
    x = x[x < end]
    for each in (x, -x):
        assert ulps(activate(2, name, each), exact_value(name, each.double())).max() <= 1.4


@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("name", NAMES)
def test_derivatives_in_float32(name, instructions, monkeypatch):
    """One step of size one of dy/dt = f(y): its derivative is 1 + f'(y)."""
    monkeypatch.setattr(fused_request, "INSTRUCTIONS", instructions)
    field = MLPField(1, 1, 2, name, "none", bias=False)
    with torch.no_grad():
        for weight in field.parameters():
            weight.fill_(1.0)
    ends = torch.cat([sign * torch.linspace(4, 25, 1000) for sign in (-1, 1)])
    y = torch.cat([torch.linspace(-7, 7, 20_011), ends])[:, None].requires_grad_()
    solution = fastnode.odeint(field, y, torch.tensor([0.0, 1.0]), method="euler", engine="fused")
    solution[-1].sum().backward()
    exact = y.detach().double().requires_grad_()
    exact_value(name, exact).sum().backward()
    # SiLU's takes x times what the logistic function lacks of one, to the last place of one.
    tolerance = 1e-6 if name == "silu" else 4e-7
    torch.testing.assert_close(y.grad.double(), 1 + exact.grad, rtol=0, atol=tolerance)


@pytest.mark.parametrize("size", [1, 15, 63, 1023])
def test_odd_sizes(size):
    x = torch.randn(size)
    torch.testing.assert_close(activate(SETS[-1], "silu", x), torch.nn.functional.silu(x))
