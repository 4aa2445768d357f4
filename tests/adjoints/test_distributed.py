"""Two processes make the gradients of one with the whole batch, for every adjoint."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import WORLD, in_two_processes, needs_gloo

import fastnode
from fastnode.nn import MLPField, NeuralODE

ADJOINTS = ["backprop", "checkpoint", fastnode.Revolve(2), "reversible", "continuous"]
pytestmark = needs_gloo


class Field(nn.Module):
    def __init__(self, unused):
        super().__init__()
        self.inner = MLPField(4, 8, activation="tanh")
        self.unused = nn.Parameter(torch.ones(3)) if unused else None

    def forward(self, t, z):
        return self.inner(t, z)


def model(adjoint):
    torch.manual_seed(0)
    # Backprop has no gradient for what is not used, and says so by None.
    field = Field(unused=adjoint != "backprop")
    return NeuralODE(field, "rk4", options={"step_size": 0.25}, adjoint=adjoint).double()


def batch(rank):
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(8, 4, dtype=torch.float64, generator=generator)


def gradients(rank, sharded):
    found = []
    for adjoint in ADJOINTS:
        node = model(adjoint)
        if sharded:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            wrapped = fully_shard(node, mesh=init_device_mesh("cpu", (WORLD,)))
        else:
            wrapped = DistributedDataParallel(node)
        wrapped(batch(rank)).square().mean().backward()
        grads = [p.grad for p in node.parameters()]
        found.append([g.full_tensor() if sharded else g for g in grads])
        torch.distributed.barrier()
        del wrapped
    return found


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("sharded", [False, True], ids=["DDP", "FSDP2"])
def test_two_processes_make_the_gradients_of_the_whole_batch(sharded):
    all_found = in_two_processes(gradients, sharded)
    for adjoint, found in zip(ADJOINTS, all_found, strict=True):
        node = model(adjoint)
        node(torch.cat([batch(rank) for rank in range(WORLD)])).square().mean().backward()
        torch.testing.assert_close(found, [p.grad for p in node.parameters()])
        if adjoint != "backprop":
            unused = dict(zip(dict(node.named_parameters()), found, strict=True))["field.unused"]
            assert not unused.any()
