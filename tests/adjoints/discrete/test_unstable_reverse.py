"""Gradients of a ReLU convolution block that contracts, so that its reverse-time solve blows up.

dy/dt = -K^T relu(K y) is the gradient flow of an energy: well-behaved forwards, and backwards every
error grows exponentially. Source of the phenomenon: arXiv 1902.10298, section 3.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from plain_reversible import plain_reversible
from selection import slow

import fastnode
from fastnode.tableaus import METHODS

BOUND = {torch.float64: 1e-10, torch.float32: 1e-5}
FEW_STEPS = (12.0, {"method": "heun2", "steps": 5})
ADAPTIVE = (40.0, {"method": "dopri5", "rtol": 1e-6, "atol": 1e-6})


class Contraction(torch.nn.Module):
    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(4, 4, 3, padding=1, bias=False, dtype=dtype)

    def forward(self, t, y):
        return -F.conv_transpose2d(torch.relu(self.conv(y)), self.conv.weight, padding=1)


def start(dtype):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(1, 4, 8, 8, generator=generator, dtype=dtype)


def gradients(net, end, adjoint, **options):
    y0 = start(net.conv.weight.dtype).requires_grad_()
    found = fastnode.solve(net, y0, torch.tensor([0.0, end]), adjoint=adjoint, **options)
    loss = found.ys[-1].square().sum()
    return found, torch.autograd.grad(loss, [y0, net.conv.weight])


@pytest.fixture(params=BOUND, ids=str)
def net(request):
    return Contraction(request.param)


@pytest.mark.parametrize(("end", "options"), [FEW_STEPS, slow(*ADAPTIVE)], ids=["heun2", "dopri5"])
@pytest.mark.parametrize("adjoint", ["checkpoint", fastnode.Revolve(2)], ids=str)
def test_gradients_are_exact_where_the_reverse_solve_blows_up(net, relative, adjoint, end, options):
    bound = BOUND[net.conv.weight.dtype]
    solution, wanted = gradients(net, end, "backprop", **options)
    assert solution.ys[-1].norm() < solution.ys[0].norm()
    assert relative(gradients(net, end, adjoint, **options)[1], wanted) < bound
    with torch.no_grad():
        back = fastnode.solve(net, solution.ys[-1], torch.tensor([end, 0.0]), **options).ys[-1]
    assert relative([back], [solution.ys[0].detach()]) > 0.9
    assert relative(gradients(net, end, "continuous", **options)[1], wanted) > 0.5


def test_reversible_is_exact_for_its_own_few_steps(net, relative):
    end, options = FEW_STEPS
    solution, found = gradients(net, end, "reversible", **options)
    y0, tableau = start(net.conv.weight.dtype).requires_grad_(), METHODS[options["method"]]
    y1 = plain_reversible(net, y0, solution.steps.times.tolist(), tableau)[-1]
    wanted = torch.autograd.grad(y1.square().sum(), [y0, net.conv.weight])
    assert relative(found, wanted) < BOUND[net.conv.weight.dtype]
