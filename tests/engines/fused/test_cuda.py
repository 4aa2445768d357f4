"""The fused engine on a GPU against its solves on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import fastnode
from fastnode.engines.fused.mlp import ACTIVATIONS
from fastnode.nn import MLPField

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
TIMES = torch.tensor([0.0, 0.3, 0.31, 1.1, 2.0], dtype=torch.float64)
TOLERANCE = {"rtol": 1e-6, "atol": 1e-7}


def make(dim=3, hidden=16, depth=2, activation="tanh", dtype=torch.float64):
    torch.manual_seed(0)
    field = MLPField(dim, hidden, depth, activation).to(dtype)
    with torch.no_grad():
        for each in field.parameters():
            each *= 1.5
    return field


@torch.no_grad()
def both(field, y0, times=TIMES, **options):
    """On the CPU and on the GPU."""
    options = {**TOLERANCE, "engine": "fused", **options}
    here = fastnode.solve(field, y0, times, **options)
    field.cuda()
    there = fastnode.solve(field, y0.cuda(), times.cuda(), **options)
    field.cpu()
    return here, there


def close(here, there, tolerance=1e-6):
    torch.testing.assert_close(there.cpu(), here, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "dopri8", "bosh3"])
@pytest.mark.parametrize(
    "dim, hidden, depth, batch",
    [(2, 64, 2, 128), (64, 128, 2, 1024), (1, 33, 3, 1), (70, 2, 4, 9), (3, 5, 1, 2000)],
)
def test_joint_steps_are_those_of_the_cpu(dim, hidden, depth, batch, method):
    here, there = both(make(dim, hidden, depth), torch.randn(batch, dim).double(), method=method)
    assert (there.accepted, there.rejected, there.nfe) == (
        here.accepted,
        here.rejected,
        here.nfe,
    )
    close(here.ys, there.ys)
    close(here.steps.stiffness, there.steps.stiffness, 1e-3)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_in_float32(activation):
    field = make(activation=activation, dtype=torch.float32)
    here, there = both(field, torch.randn(40, 3), rtol=1e-5, atol=1e-5)
    close(here.ys, there.ys, 1e-4)


def test_joint_results_repeat_bit_for_bit():
    field, y0 = make(64, 128, dtype=torch.float32).cuda(), torch.randn(1024, 64, device="cuda")
    with torch.no_grad():
        first, *others = (
            fastnode.solve(field, y0, TIMES, engine="fused", **TOLERANCE) for _ in range(5)
        )
    for other in others:
        assert torch.equal(other.ys, first.ys)
        assert torch.equal(other.steps.times, first.steps.times)


@pytest.mark.parametrize("method", ["dopri5", "dopri8"])
@pytest.mark.parametrize("batch, dim, hidden", [(7, 3, 16), (3000, 20, 40), (200_000, 3, 8)])
def test_samples_with_steps_of_their_own(batch, dim, hidden, method):
    field, y0 = make(dim, hidden), 2 * torch.randn(batch, dim).double()
    here, there = both(field, y0, TIMES[[0, 1, 3]], method=method, per_sample=True)
    assert there.status == here.status
    for name in ("accepted", "rejected", "nfe"):
        different = getattr(there, name).cpu() != getattr(here, name)
        # Errors a rounding away from the tolerance.
        assert different.double().mean() <= 1e-3
    close(here.ys, there.ys)


@pytest.mark.parametrize("method", ["euler", "heun3", "rk4"])
def test_steps_along_a_grid(method):
    field, y0 = make(), torch.randn(700, 3).double()
    options = {"method": method, "options": {"step_size": 0.1}}
    with torch.no_grad():
        here = fastnode.odeint(field, y0, TIMES, engine="fused", **options)
        there = fastnode.odeint(field.cuda(), y0.cuda(), TIMES.cuda(), engine="fused", **options)
    close(here, there, 1e-12)


def test_one_kernel_solves_it_all():
    field, y0 = make(2, 64, dtype=torch.float32).cuda(), torch.randn(128, 2, device="cuda")
    with torch.no_grad(), profile(activities=[ProfilerActivity.CUDA]) as profiled:
        fastnode.solve(field, y0, TIMES, engine="fused", **TOLERANCE)
    names = [event.name for event in profiled.events()]
    assert sum("mlp_joint_kernel" in name for name in names) == 1


def test_errors_name_what_went_wrong():
    field, y0 = make().cuda(), torch.randn(5, 3).double().cuda()
    y0[3, 1] = torch.nan
    with torch.no_grad():
        with pytest.raises(fastnode.NonFiniteState):
            fastnode.solve(field, y0, TIMES, engine="fused")
        with pytest.raises(fastnode.NonFiniteState, match="sample 3"):
            fastnode.solve(field, y0, TIMES, engine="fused", per_sample=True)
        with pytest.raises(fastnode.MaxStepsExceeded):
            fastnode.solve(field, y0.nan_to_num(), TIMES, engine="fused", max_num_steps=2)


@pytest.fixture
def by_tensor_cores():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("hidden", [128, 512])  # weights in shared memory, in device memory
@pytest.mark.parametrize("options", [{}, {"per_sample": True}, {"method": "rk4"}], ids=str)
def test_float32_by_tensor_cores(by_tensor_cores, options, hidden):
    field, y0 = make(64, hidden, dtype=torch.float32), 0.1 * torch.randn(256, 64)
    if "method" in options:
        options = options | {"options": {"step_size": 0.1}, "engine": "fused"}
        with torch.no_grad():
            here = fastnode.odeint(field, y0, TIMES, **options)
            there = fastnode.odeint(field.cuda(), y0.cuda(), TIMES.cuda(), **options)
        return close(here, there, 1e-5)
    here, there = both(field, y0, TIMES[:3], rtol=1e-4, atol=1e-4, **options)
    close(here.ys, there.ys, 1e-3)


@pytest.mark.parametrize("per_sample", [False, True])
def test_weights_in_device_memory(per_sample):
    field, y0 = make(128, 512, 3, dtype=torch.float32), 0.1 * torch.randn(256, 128)
    options = {"rtol": 1e-5, "atol": 1e-5, "per_sample": per_sample}
    here, there = both(field, y0, TIMES[:3], **options)
    close(here.ys, there.ys, 1e-3)


@pytest.mark.parametrize("per_sample", [False, True])
def test_largest_layers_fall_back_to_other_engines(per_sample):
    y0 = torch.randn(5, 64, device="cuda")
    options = {"per_sample": per_sample, **TOLERANCE}
    small, large = (make(64, n, dtype=torch.float32).cuda() for n in (16, 8192))
    assert fastnode.solve(small, y0, TIMES, **options).ys.requires_grad
    with torch.no_grad():
        assert fastnode.solve(large, y0, TIMES, **options).ys.isfinite().all()
        with pytest.raises(ValueError, match="shared memory"):
            fastnode.solve(large, y0, TIMES, engine="fused", **options)
