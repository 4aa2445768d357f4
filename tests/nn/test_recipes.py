"""Recipes: the networks' sizes as published, and what both ways of training share."""

import copy

import pytest
import torch

from fastnode.nn import recipe

INPUTS = {"digits": (64,), "mnist": (1, 28, 28), "cifar10": (3, 32, 32), "uci/boston": (13,)}


def make(name):
    return recipe(name, 13 if name.startswith("uci") else None)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", sorted(INPUTS))
def test_both_models_train_and_predict(name):
    chosen, batch = make(name), 4
    x = torch.randn(batch, *INPUTS[name])
    classification = chosen.task == "classification"
    y = torch.randint(10, (batch,)) if classification else torch.randn(batch, 1)
    simfree, node = chosen.build_simfree(path="convex", zero_probability=0.2), chosen.build_node()
    assert repr(simfree.path) == "Convex()" and simfree.zero_probability == 0.2
    assert simfree.label_noise == chosen.label_noise
    assert node.method == "dopri5" and node.rtol == node.atol == 1e-3
    simfree.loss(x, y).total.backward()
    assert all(p.grad is not None for p in simfree.parameters())
    if name != "cifar10":
        node(x).sum().backward()
        assert all(p.grad is not None for p in node.parameters())
    for model in (simfree, node):
        assert model(x, method="euler").shape == (batch, 10 if classification else 1)


@pytest.mark.parametrize(
    ("name", "latent", "dynamics"),
    [
        ("mnist", (784,), 785 * 2048 + 2048 + 2049 * 2048 + 2048 + 2049 * 784 + 784),
        ("cifar10", (256, 7, 7), 6 * (257 * 256 * 9 + 256)),
        ("uci/boston", (64,), 3 * (65 * 64 + 64)),
    ],
)
def test_published_sizes(name, latent, dynamics):
    model = make(name).build_simfree()
    x = torch.randn(2, *INPUTS[name])
    assert model.encoder(x).shape == (2, *latent)
    y = torch.zeros(2, 1 if name.startswith("uci") else 10)
    assert model.label_encoder(y).shape == (2, *latent)
    assert sum(p.numel() for p in model.field.parameters()) == dynamics


def test_published_hyper_parameters():
    mnist, cifar, uci = make("mnist"), make("cifar10"), make("uci/boston")
    assert (mnist.lr, mnist.schedule, mnist.steps, mnist.batch) == (1e-4, "none", 500_000, 1024)
    assert (cifar.lr, cifar.schedule, cifar.steps, cifar.batch) == (3e-4, "cosine", 100_000, 1024)
    assert (uci.lr, uci.schedule, uci.steps, uci.batch) == (3e-3, "none", 500_000, 64)
    assert (mnist.label_noise, cifar.label_noise, uci.label_noise) == (3.0, 10.0, 3.0)
    assert (mnist.clip_simfree, cifar.clip_simfree, uci.clip_simfree) == (None, None, 1.0)
    assert (mnist.clip_node, cifar.clip_node, uci.clip_node) == (1.0, 1.0, 1.0)
    assert (mnist.patience, cifar.patience, uci.patience) == (None, None, 100)


def test_same_seed_same_networks_in_both_models():
    torch.manual_seed(1)
    simfree = recipe("digits").build_simfree()
    torch.manual_seed(1)
    node = recipe("digits").build_node()
    state = simfree.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in node.state_dict().items())


def test_each_model_has_networks_of_its_own():
    chosen = recipe("digits")
    first, second = chosen.build_simfree(), chosen.build_simfree()
    before = copy.deepcopy(second.state_dict())
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in second.state_dict().items())


@pytest.mark.parametrize(
    ("name", "inputs", "words"),
    [
        ("letters", None, "unknown recipe 'letters', expected one of digits, mnist, mnist-small"),
        ("uci/boston", None, "recipe 'uci/boston' needs in_features"),
        ("diabetes", 0, "in_features must be at least 1, got 0"),
        ("digits", 784, "'digits' takes 64 inputs, got in_features=784"),
    ],
)
def test_bad_arguments_are_named(name, inputs, words):
    with pytest.raises(ValueError, match=words):
        recipe(name, inputs)
