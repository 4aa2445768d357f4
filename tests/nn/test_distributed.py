"""DistributedDataParallel: two processes make the gradients of one with the whole batch."""

import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastnode.nn import EncodedODE, LossModule, MLPField, SimulationFreeNODE

WORLD = 2
pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")


def simfree():
    torch.manual_seed(0)
    return SimulationFreeNODE(
        nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 2), MLPField(4, 8), num_classes=2
    ).double()


def node():
    torch.manual_seed(0)
    return EncodedODE(nn.Linear(3, 4), MLPField(4, 8), nn.Linear(4, 2)).double()


def batch(rank):
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(8, 3, dtype=torch.float64, generator=generator)
    return x, torch.randint(2, (8,), generator=generator), generator


def worker(rank, port, results):
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=60),
    )
    torch.set_num_threads(1)
    x, y, generator = batch(rank)
    first, second = simfree(), node()
    # A wrapper that is collected before the backward pass no longer averages: both are held.
    trained, solved = DistributedDataParallel(LossModule(first)), DistributedDataParallel(second)
    trained(x, y, generator).total.backward()
    nn.functional.cross_entropy(solved(x, method="rk4"), y).backward()
    if rank == 0:
        torch.save([[p.grad for p in model.parameters()] for model in (first, second)], results)
    # A process that leaves while the other still talks to it can abort in the other's threads.
    dist.barrier()
    del trained, solved
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
    whole, solved = simfree(), node()
    # Each process draws its own times and noise; the mean over the halves is the whole's mean.
    losses = [whole.loss(*batch(rank)).total for rank in range(WORLD)]
    (sum(losses) / WORLD).backward()
    x, y = (torch.cat([batch(rank)[part] for rank in range(WORLD)]) for part in (0, 1))
    nn.functional.cross_entropy(solved(x, method="rk4"), y).backward()
    for gradients, model in zip(torch.load(results), (whole, solved), strict=True):
        torch.testing.assert_close(gradients, [p.grad for p in model.parameters()])
