"""DistributedDataParallel: two processes make the gradients of one with the whole batch."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import WORLD, in_two_processes, needs_gloo

from fastnode.nn import EncodedODE, LossModule, MLPField, SimulationFreeNODE

pytestmark = needs_gloo


def simfree():
    torch.manual_seed(0)
    return SimulationFreeNODE(
        nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 2), MLPField(4, 8), num_classes=2
    ).double()


def node():
    torch.manual_seed(0)
    return EncodedODE(nn.Linear(3, 4), MLPField(4, 8), nn.Linear(4, 2)).double()


class Gated(nn.Module):
    """No perceptron."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, t, y):
        return torch.tanh(self.a(y)) * torch.sigmoid(self.b(y))


def compiled():
    torch.manual_seed(0)
    return EncodedODE(nn.Linear(3, 4), Gated(), nn.Linear(4, 2), compile=True).double()


def batch(rank):
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(8, 3, dtype=torch.float64, generator=generator)
    return x, torch.randint(2, (8,), generator=generator), generator


def gradients(rank):
    x, y, generator = batch(rank)
    models = first, *others = simfree(), node(), compiled()
    # A wrapper that is collected before the backward pass no longer averages: all are held.
    trained, *solved = map(DistributedDataParallel, (LossModule(first), *others))
    trained(x, y, generator).total.backward()
    for each in solved:
        nn.functional.cross_entropy(each(x, method="rk4"), y).backward()
    return [[p.grad for p in model.parameters()] for model in models]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_two_processes_make_the_gradients_of_the_whole_batch():
    models = whole, *others = simfree(), node(), compiled()
    # Each process draws its own times and noise; the mean over the halves is the whole's mean.
    losses = [whole.loss(*batch(rank)).total for rank in range(WORLD)]
    (sum(losses) / WORLD).backward()
    x, y = (torch.cat([batch(rank)[part] for rank in range(WORLD)]) for part in (0, 1))
    for each in others:
        nn.functional.cross_entropy(each(x, method="rk4"), y).backward()
    for found, model in zip(in_two_processes(gradients), models, strict=True):
        torch.testing.assert_close(found, [p.grad for p in model.parameters()])
