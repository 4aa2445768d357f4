"""The C++ loop around a field on a GPU: the CPU's numbers, and hardly ever a wait."""

from __future__ import annotations

import pytest
import torch

import fastnode

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def field(t, y):
    return (t - 1) * y + 0.1 * y.roll(1, -1)


def tuple_field(t, y):
    return field(t, y[0]), -y[1]


def state(dtype=torch.float64, device="cuda"):
    return torch.linspace(1, 2, 40, dtype=torch.float64).view(4, 10).to(device, dtype)


def waits(run) -> int:
    """How often the host waits for the device during ``run``."""
    run()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as nothing:
        pass
    with torch.profiler.profile(activities=activities) as profile:
        run()
    count = [sum(event.name in WAITS for event in p.events()) for p in (profile, nothing)]
    return count[0] - count[1]


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "dopri8", "bosh3"])
def test_takes_the_steps_of_the_cpu(method):
    times = torch.tensor([0.0, 0.5, 0.6, 3.0], dtype=torch.float64)
    found, wanted = (
        fastnode.solve(field, state(device=device), times, method=method, rtol=1e-7, atol=1e-9)
        for device in ("cuda", "cpu")
    )
    assert found.ys.is_cuda
    torch.testing.assert_close(found.ys.cpu(), wanted.ys, rtol=1e-9, atol=1e-11)
    assert (found.accepted, found.rejected) == (wanted.accepted, wanted.rejected)
    torch.testing.assert_close(found.steps.times, wanted.steps.times, rtol=1e-7, atol=0)
    torch.testing.assert_close(
        found.steps.stiffness, wanted.steps.stiffness, rtol=1e-4, atol=1e-6, equal_nan=True
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision(dtype):
    times = torch.tensor([0.0, 1.0])
    found = fastnode.odeint(field, state(dtype), times, method="dopri5", rtol=1e-2, atol=1e-2)
    wanted = fastnode.odeint(field, state(), times.double(), method="dopri5")
    torch.testing.assert_close(found.double(), wanted, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("form", ["tensor", "tuple"])
def test_an_adaptive_solve_waits_once_a_step(form):
    times = torch.tensor([0.0, 0.5, 3.0])
    func, y0 = (field, state()) if form == "tensor" else (tuple_field, (state(), state()))
    solution = fastnode.solve(func, y0, times, method="dopri5")
    steps = solution.accepted + solution.rejected
    # Three for the first step's size and, for all steps together, one for their stiffness.
    run = lambda: fastnode.solve(func, y0, times, method="dopri5")  # noqa: E731
    assert waits(run) <= steps + 4


def test_fixed_steps_never_wait():
    times = torch.tensor([0.0, 0.5, 3.0])
    y0 = state()

    def run():
        fastnode.odeint(field, y0, times, method="rk4", options={"step_size": 0.1})

    assert waits(run) == 0


@pytest.mark.parametrize("adjoint", ["backprop", "checkpoint", "continuous"])
def test_gradients_are_those_of_the_cpu(adjoint):
    def gradient(device):
        y0 = state(device=device).requires_grad_()
        times = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
        ys = fastnode.solve(
            field, y0, times, method="dopri5", adjoint=adjoint, rtol=1e-9, atol=1e-9
        ).ys
        ys.square().sum().backward()
        return y0.grad.cpu()

    torch.testing.assert_close(gradient("cuda"), gradient("cpu"), rtol=1e-6, atol=1e-8)
