from __future__ import annotations

import pytest
import torch
import torchdiffeq
from odeint_cases import TIMES, Net, grid, state

import fastnode

METHODS = ["euler", "midpoint", "rk4", "dopri5", "tsit5"]
SHARED = ["euler", "midpoint", "rk4", "dopri5"]


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("method", SHARED)
def test_gradients_agree_with_backprop_through_torchdiffeq(method, direction):
    net = Net()
    results = []
    for solve in (fastnode.odeint, torchdiffeq.odeint):
        y0 = state(3, 4).requires_grad_()
        t = TIMES[direction].clone().requires_grad_()
        y = solve(net, y0, t, method=method, rtol=1e-9, atol=1e-10)
        loss = y[1:].square().sum()
        results.append(torch.autograd.grad(loss, (y0, t, *net.parameters())))
    tolerance = 1e-5 if method == "dopri5" else 1e-10
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_gradcheck_for_state_and_times(method):
    net = Net(dim=2)
    t = grid(0.0, 0.2, 0.5).requires_grad_()
    y0 = state(2, 2).requires_grad_()
    options = {"first_step": 0.1, "min_step": 0.1, "max_step": 0.1}
    adaptive = {"options": options} if method in ("dopri5", "tsit5") else {}
    assert torch.autograd.gradcheck(
        lambda y, t: fastnode.odeint(net, y, t, method=method, **adaptive), (y0, t)
    )


def test_gradient_of_a_gradient():
    net, t = Net(dim=2), grid(0.0, 0.4)
    y0 = state(1, 2).requires_grad_()
    function = lambda y: fastnode.odeint(net, y, t, method="rk4")[-1]  # noqa: E731
    assert torch.autograd.gradgradcheck(function, (y0,))


def test_jacobians_by_torch_func():
    net, y0, t = Net(dim=2), state(2), grid(0.0, 0.5, 1.0)

    def end(y):
        return fastnode.odeint(net, y, t, method="rk4")[-1]

    wanted = torch.autograd.functional.jacobian(end, y0)
    torch.testing.assert_close(torch.func.jacrev(end)(y0), wanted)
    torch.testing.assert_close(torch.func.jacfwd(end)(y0), wanted)
