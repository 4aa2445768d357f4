"""Latent ODEs: the encoder, and solves at common times and at each series' own."""

import copy

import pytest
import torch
from torch import nn

from fastnode.nn import EncodedODE, MLPField
from fastnode.nn.latent import GRUEncoder, OwnTimesODE


def series(batch=5, times=7, variables=3):
    generator = torch.Generator().manual_seed(0)
    seen = (torch.rand(batch, times, variables, generator=generator) < 0.4).double()
    values = torch.rand(batch, times, variables, generator=generator).double() * seen
    return torch.stack([values, seen], dim=2)


@pytest.fixture
def nets():
    torch.manual_seed(0)
    return GRUEncoder(3, 4, 6), MLPField(4, 8, activation="tanh"), nn.Linear(4, 3)


def make(kind, nets, **settings):
    times = torch.linspace(0, 1, 7, dtype=torch.float64)
    model = kind(*nets, "tsit5", rtol=1e-9, atol=1e-9, times=times, **settings)
    return model.double()


def test_latent_own_times_match_common_times(nets):
    x = series()
    one, other = make(EncodedODE, nets).eval(), make(OwnTimesODE, nets).eval()
    seen = x[:, :, 1].amax(2) > 0
    expected, found = one(x), other(x)
    assert expected.shape == found.shape == (5, 7, 3)
    torch.testing.assert_close(found[seen], expected[seen], rtol=1e-6, atol=1e-7)
    assert not seen.all(), "some times must be nobody's"
    assert one.nfe > 0 and other.nfe > 0


def test_gradients_at_own_times_are_those_at_common_times(nets):
    x = series()
    gradients = []
    for kind in (EncodedODE, OwnTimesODE):
        model = make(kind, nets).eval()
        loss = (x[:, :, 1] * (model(x) - x[:, :, 0]).square()).sum()
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_a_series_without_observations_is_solved_too(nets):
    x = torch.zeros(2, 7, 2, 3, dtype=torch.float64)
    assert make(OwnTimesODE, nets)(x).isfinite().all()


def test_latent_state_is_sampled_only_in_training(nets):
    encoder, x = nets[0], series().float()
    encoder.generator = torch.Generator().manual_seed(1)
    first, second = encoder(x), encoder(x)
    assert not torch.equal(first, second)
    encoder.generator.manual_seed(1)
    assert torch.equal(encoder(x), first)
    encoder.eval()
    assert torch.equal(encoder(x), encoder(x)) and not torch.equal(encoder(x), first)


def test_the_divergence_is_that_of_two_normal_distributions(nets):
    encoder, x = nets[0].eval(), series().float()
    _, last = encoder.gru(x.flatten(2).flip(1))
    mean, log_variance = encoder.head(last[0]).chunk(2, dim=1)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(
        normal(mean, (log_variance / 2).exp()), normal(0.0, 1.0)
    )
    encoder(x)
    torch.testing.assert_close(encoder.divergence, expected.mean())


def test_a_model_that_was_used_can_be_copied(nets):
    model = make(EncodedODE, nets)
    model.encoder.generator = torch.Generator()
    model(series())
    assert copy.deepcopy(model)(series()).shape == (5, 7, 3)


def test_a_series_of_another_shape_is_named(nets):
    with pytest.raises(ValueError, match=r"x must be of shape \[B, T, 2, D\], got \(5, 7, 3\)"):
        nets[0](torch.zeros(5, 7, 3))


def test_the_decoder_is_given_the_states_at_all_times():
    class Growth(nn.Module):
        def forward(self, t, z):
            return z

    times = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)
    model = EncodedODE(nn.Identity(), Growth(), nn.Identity(), "dopri5", times=times)
    z0 = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    found = model(z0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found, z0[:, None] * times.exp()[:, None], rtol=1e-7, atol=0)
    found = model(z0, method="euler")
    factors = torch.tensor([1.0, 1.5, 1.5 * 2.5], dtype=torch.float64)
    torch.testing.assert_close(found, z0[:, None] * factors[:, None])
    assert model.nfe == 2
