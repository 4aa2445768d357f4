"""odeint_adjoint under DistributedDataParallel and fully_shard: two processes, one gradient."""

import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fastnode

WORLD = 2
pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")


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


def worker(rank, port, results):
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=60),
    )
    torch.set_num_threads(1)
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
    if rank == 0:
        torch.save(([param.grad for param in model.parameters()], gathered), results)
    # A process that leaves while the other still talks to it can abort in the other's threads.
    dist.barrier()
    del model
    dist.destroy_process_group()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_two_processes_make_the_gradients_of_the_whole_batch(tmp_path):
    results = tmp_path / "gradients.pt"
    mp.spawn(worker, (free_port(), str(results)), nprocs=WORLD)
    whole = Model()
    (sum(whole(batch(rank)) for rank in range(WORLD)) / WORLD).backward()
    for found in torch.load(results):
        torch.testing.assert_close(found, [param.grad for param in whole.parameters()])
        assert not found[-1].any() and not found[-2].any()
