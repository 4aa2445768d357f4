"""odeint_adjoint under DistributedDataParallel and fully_shard: two processes, one gradient."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from two_processes import WORLD, in_two_processes, needs_gloo

import fastnode

pytestmark = needs_gloo


class Model(nn.Module):
    """One ODE layer whose field holds a layer that it does not use."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(3, 4)
        self.field = Field()
        self.double()

    def forward(self, x):
        t = torch.tensor([0.0, 1.0], dtype=torch.float64)
        y = fastnode.odeint_adjoint(self.field, self.encoder(x), t, rtol=1e-9, atol=1e-10)
        return y[-1].square().mean()


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, t, y):
        return torch.tanh(self.used(y)) * (1 + t)


def batch(rank):
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(8, 3, dtype=torch.float64, generator=generator)


def gradients(rank):
    model = DistributedDataParallel(Model())
    model(batch(rank)).backward()
    sharded, alone = Model(), Model()
    mesh = init_device_mesh("cpu", (WORLD,))
    fully_shard(sharded, mesh=mesh)
    sharded(batch(rank)).backward()
    gathered = [param.grad.full_tensor() for param in sharded.parameters()]
    fully_shard(alone.field, mesh=mesh)
    with pytest.raises(ValueError, match="apply fully_shard to the module that calls"):
        alone(batch(rank))
    return [param.grad for param in model.parameters()], gathered


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_two_processes_make_the_gradients_of_the_whole_batch():
    whole = Model()
    (sum(whole(batch(rank)) for rank in range(WORLD)) / WORLD).backward()
    for found in in_two_processes(gradients):
        torch.testing.assert_close(found, [param.grad for param in whole.parameters()])
        assert not found[-1].any() and not found[-2].any()
