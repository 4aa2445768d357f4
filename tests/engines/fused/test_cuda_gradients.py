"""Gradients of the fused engine on a GPU against its gradients on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import fastnode
from fastnode.control.controllers import Controller
from fastnode.engines.fused.mlp import ACTIVATIONS
from fastnode.nn import MLPField

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
TIMES = torch.tensor([0.0, 0.3, 0.31, 1.1, 2.0], dtype=torch.float64)
TOLERANCE = {"rtol": 1e-6, "atol": 1e-7}
GRID = {"step_size": 0.1}


def make(dim=3, hidden=16, depth=2, activation="tanh", dtype=torch.float64):
    torch.manual_seed(0)
    return MLPField(dim, hidden, depth, activation).to(dtype)


def gradients(field, y0, device, face=fastnode.solve, of_times=False, **options):
    """Of y0, of the times if wanted, and of parameters, on the CPU."""
    field.to(device).zero_grad()
    y = y0.to(device).detach().requires_grad_()
    t = TIMES.to(device).detach().requires_grad_(of_times)
    ys = face(field, y, t, engine="fused", **options)
    ys = ys if isinstance(ys, torch.Tensor) else ys.ys
    upstream = torch.randn(ys.shape, dtype=ys.dtype, generator=torch.Generator().manual_seed(2))
    ys.backward(upstream.to(device))
    found = [y.grad, *([t.grad] if of_times else []), *(p.grad for p in field.parameters())]
    return [x.cpu().clone() for x in found]


def check(field, y0, tolerance=1e-6, **options):
    here, there = (gradients(field, y0, device, **options) for device in ("cpu", "cuda"))
    for wanted, found in zip(here, there, strict=True):
        scale = wanted.abs().max().item()
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "dopri8", "bosh3"])
@pytest.mark.parametrize(
    "dim, hidden, depth, batch",
    [
        *[(2, 64, 2, 128), (64, 64, 2, 1024), (1, 33, 3, 1), (70, 2, 4, 9), (3, 5, 1, 3000)],
        (64, 512, 2, 100),  # weights in device memory
    ],
)
def test_gradients_are_those_of_the_cpu(dim, hidden, depth, batch, method):
    check(make(dim, hidden, depth), torch.randn(batch, dim).double(), method=method, **TOLERANCE)


@pytest.mark.parametrize("adjoint", ["backprop", "checkpoint"])
def test_both_discrete_adjoints(adjoint):
    check(make(), torch.randn(50, 3).double(), adjoint=adjoint, **TOLERANCE)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_in_float32(activation):
    field = make(activation=activation, dtype=torch.float32)
    check(field, torch.randn(40, 3), 1e-3, method="rk4", face=fastnode.odeint, options=GRID)


@pytest.mark.parametrize("method", ["euler", "heun3", "rk4"])
def test_steps_along_a_grid(method):
    y0 = torch.randn(700, 3).double()
    check(make(), y0, 1e-11, method=method, face=fastnode.odeint, options=GRID)


def test_gradients_of_times():
    y0 = torch.randn(50, 3).double()
    check(make(), y0, of_times=True, face=fastnode.odeint, **TOLERANCE)


def test_more_steps_than_a_launch_has_room_for():
    check(make(), torch.randn(50, 3).double(), controller=Controller(max_step=0.005))


@pytest.mark.parametrize("method", ["dopri5", "dopri8"])
@pytest.mark.parametrize("batch, dim, hidden", [(7, 3, 16), (3000, 20, 40), (200_000, 3, 8)])
def test_samples_with_steps_of_their_own(batch, dim, hidden, method):
    y0 = 2 * torch.randn(batch, dim).double()
    check(make(dim, hidden), y0, 1e-5, method=method, per_sample=True, **TOLERANCE)


@pytest.mark.parametrize("per_sample", [False, True])
def test_gradients_repeat_bit_for_bit(per_sample):
    field, y0 = make(32, 64, dtype=torch.float32), torch.randn(1024, 32)
    options = {"per_sample": per_sample, "rtol": 1e-4, "atol": 1e-4}
    first, *others = (gradients(field, y0, "cuda", **options) for _ in range(4))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(other, first, strict=True))


def test_second_derivatives():
    field, y0 = make(2, 6), torch.randn(3, 2).double()
    found = []
    for device in ("cpu", "cuda"):
        field.to(device).zero_grad()
        y = y0.to(device).requires_grad_()
        ys = fastnode.solve(field, y, TIMES.to(device), engine="fused", **TOLERANCE).ys
        (first,) = torch.autograd.grad(ys.square().sum(), y, create_graph=True)
        first.square().sum().backward()
        found.append(y.grad.cpu())
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_one_kernel_goes_all_the_way_back():
    field, y0 = make(2, 64, dtype=torch.float32).cuda(), torch.randn(128, 2, device="cuda")
    loss = fastnode.solve(field, y0, TIMES, engine="fused", **TOLERANCE).ys.square().sum()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        loss.backward()
    names = [event.name for event in profiled.events()]
    assert sum("mlp_backward_kernel" in name for name in names) == 1
    assert sum("mlp_sum_gradients_kernel" in name for name in names) == 1


def test_what_has_no_gradient_there_is_refused_with_the_reason():
    y0 = torch.randn(5, 64, device="cuda")
    with pytest.raises(ValueError, match="no revolve"):
        field = make(64, dtype=torch.float32).cuda()
        fastnode.solve(field, y0, TIMES, engine="fused", adjoint=fastnode.Revolve(3))
    with pytest.raises(ValueError, match="shared memory"):
        fastnode.solve(make(64, 8192, dtype=torch.float32).cuda(), y0, TIMES, engine="fused")
