"""Embeddings that are not learned with the flow."""

import pytest
import torch

from fastnode.nn import recipe


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def data():
    return torch.rand(8, 64), torch.arange(8)


def gradients(loss, module):
    parameters = list(module.parameters())
    return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)


def test_autoencoding_alone_hides_the_flow_from_the_encoders():
    model = recipe("digits").build_simfree(embedding="autoencoded")
    parts = model.loss(*data())
    for module in (model.encoder, model.label_encoder, model.decoder):
        assert all(each is None for each in gradients(parts.flow, module))
    assert all(each is not None for each in gradients(parts.flow, model.field))
    for module in (model.encoder, model.label_encoder, model.decoder, model.data_decoder):
        assert all(each is not None for each in gradients(parts.label, module))
    torch.testing.assert_close(parts.total, parts.flow + parts.label)


def test_augmented_dimensions_leave_data_and_labels_as_they_are():
    model = recipe("digits").build_simfree(embedding="augmented", label_noise=0.0)
    x, y = data()
    z0 = model.encoder(x)
    assert torch.equal(z0[:, :64], x) and (z0[:, 64:] == 0).all()
    parts = model.loss(x, y)
    assert parts.label == 0 and parts.flow > 0
    assert model(x).shape == (8, 10)
    assert not list(model.encoder.parameters()) and not list(model.decoder.parameters())


def test_what_a_recipe_cannot_have_is_named():
    with pytest.raises(ValueError, match="embedding must be one of learned, augmented"):
        recipe("digits").build_simfree(embedding="none")
    with pytest.raises(ValueError, match="recipe 'cifar10' has no embedding 'augmented'"):
        recipe("cifar10").build_simfree(embedding="augmented")
    with pytest.raises(ValueError, match="recipe 'mnist-ode' is trained through the solver"):
        recipe("mnist-ode").build_simfree()
