"""Whole training steps: loss, gradients and update by ``TrainStep`` against what a user writes.

The references are plain PyTorch with AdamW(fused=True), the same with loss and optimiser under
torch.compile, and our own eager step. All draw the same random numbers from equal generators; over
100 steps their losses must agree to 1e-5. Two hundred steps more make moments and activations those
of a run, not of a first step.

``solver`` trains a neural ODE through dopri5 against the same model on torchdiffeq.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
import torchdiffeq
from ratio import compare, full
from torch import nn

import fastnode
from fastnode import extension
from fastnode.nn import EncodedODE, MLPField, SimulationFreeNODE
from fastnode.nn.recipe_nets import image_nets

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)

#: Inputs, latent, hidden, batch.
SIZES = [(8, 64, 64, 64), (30, 64, 96, 128), (64, 128, 256, 128), *full((784, 784, 2048, 256))]
#: Steps over which losses must agree, and those before the timing.
AGREE, LATER = 100, 200
NOISE, ZEROS, RATE = 3.0, 0.1, 1e-4
#: Latent dimensions of the images' net, and channels: the recipe cifar10 has 256 and 64.
IMAGES = [(32, 16, 32), *full((256, 64, 32))]


class PlainField(nn.Module):
    """The net of an MLPField as one writes it by hand, with its own copy of the parameters."""

    def __init__(self, field: MLPField):
        super().__init__()
        self.layers = nn.ModuleList()
        for layer in field.layers:
            rows, columns = layer.weight.shape
            self.layers.append(nn.Linear(columns, rows))
            self.layers[-1].load_state_dict(layer.state_dict())
        self.activate = getattr(F, field.activation)

    def forward(self, t, z):
        t = t.reshape(-1, 1).expand(len(z), 1)
        for i, layer in enumerate(self.layers):
            z = layer(torch.cat([self.activate(z) if i else z, t], 1))
        return z


def plain_loss(model, field, x, y, drawn, noise):
    z0, z1 = model.encoder(x), model.label_encoder(y)
    u, v = drawn
    t = torch.where(v < ZEROS, 0.0, u).reshape(-1, *[1] * (z0.dim() - 1))
    zt = (1 - t) * z0 + t * z1
    flow = ((field(t.reshape(-1), zt) - (z1 - z0)) ** 2).mean()
    return flow + ((model.decoder(z1 + NOISE * noise) - y) ** 2).mean()


class Plain:
    """A contestant: a copy of the model, the plain loss and AdamW."""

    def __init__(self, model, loss=plain_loss, compile_optimizer=False):
        self.model = copy.deepcopy(model)
        if isinstance(self.model.field, MLPField):
            self.model.field = PlainField(self.model.field)
        self.loss = loss
        options = {} if compile_optimizer else {"fused": True}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), RATE, **options)
        self.update = self.optimizer.step
        if compile_optimizer:
            self.update = torch.compile(self.optimizer.step)
        self.generator = torch.Generator().manual_seed(0)
        self.shape = None

    def __call__(self, x, y):
        model = self.model
        if self.shape is None:
            with torch.no_grad():
                self.shape = model.label_encoder(y[:1]).shape[1:]
        drawn = torch.rand(2, len(x), generator=self.generator)
        noise = torch.randn(len(x), *self.shape, generator=self.generator)
        self.optimizer.zero_grad()
        loss = self.loss(model, model.field, x, y, drawn, noise)
        loss.backward()
        self.update()
        return loss.detach()


class Ours:
    def __init__(self, model, engine):
        self.model = copy.deepcopy(model)
        self.step = fastnode.TrainStep(
            self.model, torch.optim.AdamW(self.model.parameters(), RATE, fused=True), engine=engine
        )
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, x, y):
        return self.step(x, y, generator=self.generator).total


def contest(benchmark, subject, case, model, x, y, compiled=True, rounds=12, **facts):
    torch._dynamo.reset()
    ours = Ours(model, "auto")
    rivals = {"plain": Plain(model), "fastnode, eager": Ours(model, "eager")}
    if compiled:
        loss = torch.compile(plain_loss, dynamic=False)
        rivals["compile"] = Plain(model, loss)
        rivals["compile, optimizer too"] = Plain(model, loss, compile_optimizer=True)
    count = AGREE if facts.pop("agree", True) else 3
    for _ in range(count):
        want = rivals["plain"](x, y)
        for each in (ours, *list(rivals.values())[1:]):
            torch.testing.assert_close(each(x, y), want, rtol=1e-5, atol=1e-6)
    if count == AGREE:
        for each in (ours, *rivals.values()):
            for _ in range(LATER):
                each(x, y)
    ratios = compare(
        benchmark, subject, case, lambda: ours(x, y),
        {name: lambda f=f: f(x, y) for name, f in rivals.items()},
        rounds=rounds, compiled=ours.step.reason is None, **facts,
    )  # fmt: skip
    assert all(ratio > 0 for ratio in ratios.values())


def table_model(inputs, latent, hidden, activation="relu"):
    torch.manual_seed(0)
    return SimulationFreeNODE(
        nn.Sequential(nn.Linear(inputs, latent), nn.ReLU(), nn.Linear(latent, latent)),
        nn.Linear(1, latent),
        nn.Linear(latent, 1),
        MLPField(latent, hidden, activation=activation),
    )


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_simulation_free(benchmark, threads, size):
    inputs, latent, hidden, batch = size
    x, y = torch.randn(batch, inputs), torch.randn(batch, 1)
    model = table_model(inputs, latent, hidden)
    small = latent < 784
    contest(
        benchmark, "training step", f"{size}, {threads} threads", model, x, y,
        agree=small, rounds=12 if small else 5,
    )  # fmt: skip


@pytest.mark.parametrize("activation", ["silu", "tanh"])
def test_activations(benchmark, one_thread, activation):
    inputs, latent, hidden, batch = SIZES[0]
    x, y = torch.randn(batch, inputs), torch.randn(batch, 1)
    model = table_model(inputs, latent, hidden, activation)
    contest(benchmark, "training step", f"{SIZES[0]}, {activation}", model, x, y)


@pytest.mark.parametrize("size", IMAGES, ids=str)
def test_images(benchmark, one_thread, size):
    latent, width, batch = size
    torch.manual_seed(0)
    nets = image_nets(latent, width)
    model = SimulationFreeNODE(nets.encoder, nets.label_encoder, nets.decoder, nets.field)
    x, y = torch.randn(batch, 3, 32, 32), F.one_hot(torch.arange(batch) % 10, 10).float()
    contest(
        benchmark, "training step, images", str(size), model, x, y, compiled=False,
        agree=False, rounds=5,
    )  # fmt: skip


class Through(nn.Module):
    """An encoded ODE on torchdiffeq."""

    def __init__(self, model):
        super().__init__()
        self.encoder, self.decoder = model.encoder, model.decoder
        self.field = PlainField(model.field)
        self.times = torch.tensor([0.0, 1.0])

    def forward(self, x):
        z = self.encoder(x)
        z = torchdiffeq.odeint(self.field, z, self.times, rtol=1e-3, atol=1e-3, method="dopri5")
        return self.decoder(z[-1])


def mean_square(model, x, y):
    return F.mse_loss(model(x), y)


@pytest.mark.parametrize("activation", ["relu", "silu", "tanh"])
def test_through_the_solver(benchmark, one_thread, activation):
    inputs, latent, hidden, batch = SIZES[0]
    torch.manual_seed(0)
    x, y = torch.randn(batch, inputs), torch.randn(batch, 1)
    nets = table_model(inputs, latent, hidden, activation)
    model = EncodedODE(nets.encoder, nets.field, nets.decoder)

    def trained(model, native):
        optimizer = torch.optim.AdamW(model.parameters(), RATE, fused=True)
        if native:
            return fastnode.TrainStep(model, optimizer, mean_square)

        def step(x, y):
            optimizer.zero_grad()
            loss = mean_square(model, x, y)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    rivals = {
        "torchdiffeq": trained(Through(copy.deepcopy(model)), False),
        "fastnode, plain loop": trained(copy.deepcopy(model), False),
    }
    ours = trained(model, True)
    for _ in range(10):
        want = rivals["torchdiffeq"](x, y)
        for each in (ours, rivals["fastnode, plain loop"]):
            torch.testing.assert_close(each(x, y), want, rtol=1e-3, atol=1e-4)
    ratios = compare(
        benchmark, "training step, solver", f"{SIZES[0]}, {activation}", lambda: ours(x, y),
        {name: lambda f=f: f(x, y) for name, f in rivals.items()},
        compiled=ours.reason is None,
    )  # fmt: skip
    assert all(ratio > 0 for ratio in ratios.values())
