"""Vector fields: the definition by concatenation, forms of t, and what modules must survive."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F

from fastnode.engines.fused.mlp import ACTIVATIONS
from fastnode.nn import ConvField, MLPField


def concatenated_mlp(field, t, z):
    for index, layer in enumerate(field.layers):
        if index:
            z = ACTIVATIONS[field.activation](z)
        if field.time == "every" or (field.time == "once" and index == 0):
            z = torch.cat([z, t.expand(z.shape[:-1]).unsqueeze(-1)], dim=-1)
        z = F.linear(z, layer.weight, layer.bias)
    return z


def concatenated_conv(field, t, z):
    for layer in field.layers:
        channel = t.reshape(-1, 1, 1, 1).expand(len(z), 1, *z.shape[-2:])
        z = F.conv2d(torch.cat([z.relu(), channel], 1), layer.weight, layer.bias, padding=1)
    return z


def gradients(field, value):
    return torch.autograd.grad(value.square().sum(), list(field.parameters()))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("time", ["every", "once", "none"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("per_sample", [True, False])
def test_mlp_equals_plain_concatenation_of_the_time(time, bias, per_sample):
    field = MLPField(3, 7, activation="tanh", time=time, bias=bias).double()
    z = torch.randn(5, 3, dtype=torch.float64)
    t = torch.rand(5 if per_sample else (), dtype=torch.float64)
    expected = concatenated_mlp(field, t, z)
    torch.testing.assert_close(field(t, z), expected)
    torch.testing.assert_close(gradients(field, field(t, z)), gradients(field, expected))


@pytest.mark.parametrize("per_sample", [True, False])
def test_conv_field_matches_concatenated_time(per_sample):
    field = ConvField(3, hidden=4, layers=3).double()
    z = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    t = torch.rand(2 if per_sample else (), dtype=torch.float64)
    expected = concatenated_conv(field, t, z)
    torch.testing.assert_close(field(t, z), expected)
    torch.testing.assert_close(gradients(field, field(t, z)), gradients(field, expected))


@pytest.mark.parametrize("field", [MLPField(4, 6), ConvField(4, layers=2)], ids=["mlp", "conv"])
def test_time_may_be_a_number_a_scalar_or_per_sample(field):
    z = torch.randn((3, 4, 5, 4)) if isinstance(field, ConvField) else torch.randn(3, 4)
    expected = field(torch.tensor(0.3), z)
    assert expected.shape == z.shape
    torch.testing.assert_close(field(0.3, z), expected)
    torch.testing.assert_close(field(torch.tensor(0.3, dtype=torch.float64), z), expected)
    torch.testing.assert_close(field(torch.full((3,), 0.3), z), expected)
    torch.testing.assert_close(field(0.3, z[0]), expected[0])


def test_fields_keep_the_leading_dimensions_of_a_state():
    field = MLPField(3, 4)
    z, t = torch.randn(2, 5, 3), torch.rand(2)
    expected = torch.stack([field(time, part) for time, part in zip(t, z, strict=True)])
    torch.testing.assert_close(field(t, z), expected)


def test_gradient_reaches_the_time():
    field = MLPField(3, 4, activation="sin").double()
    z = torch.randn(2, 3, dtype=torch.float64)
    times = torch.rand((), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: field(t, z), times)
    times = torch.rand(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: field(t, z), times)


@pytest.mark.parametrize("depth", range(1, 9))
def test_depth_counts_linear_layers(depth):
    field = MLPField(3, 5, depth=depth)
    assert len(field.layers) == depth
    assert field(0.0, torch.zeros(2, 3)).shape == (2, 3)


def test_widths_follow_a_sequence():
    field = MLPField(3, (5, 7), time="once")
    assert [tuple(layer.weight.shape) for layer in field.layers] == [(5, 4), (7, 5), (3, 7)]


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_every_activation_is_differentiable(activation):
    field = MLPField(2, 3, activation=activation)
    field(torch.rand(4), torch.randn(4, 2)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in field.parameters())


@pytest.mark.parametrize("make", [lambda: MLPField(4, 6), lambda: ConvField(4, layers=2)])
def test_copies_and_saved_states_compute_the_same(make):
    field, t = make(), torch.rand(3)
    z = torch.randn(3, 4, 5, 5) if isinstance(field, ConvField) else torch.randn(3, 4)
    expected = field(t, z)
    loaded = make()
    buffer = io.BytesIO()
    torch.save(field.state_dict(), buffer)
    buffer.seek(0)
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    for other in (copy.deepcopy(field), pickle.loads(pickle.dumps(field)), loaded):
        assert torch.equal(other(t, z), expected)
    assert field.to(torch.float64)(t.double(), z.double()).dtype == torch.float64
    assert field.to(torch.bfloat16)(torch.tensor(0.5), z.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("field", [MLPField(4, 6), ConvField(4, layers=2)], ids=["mlp", "conv"])
def test_autocast_takes_narrow_states_and_float32_times(field, dtype):
    z = torch.randn((3, 4, 5, 4)) if isinstance(field, ConvField) else torch.randn(3, 4)
    for t in (torch.rand(3), torch.rand(())):
        expected = field(t, z)
        with torch.autocast("cpu", dtype=dtype):
            for state in (z, z.to(dtype)):
                value = field(t, state)
                assert value.dtype == dtype
                torch.testing.assert_close(value.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("field", [MLPField(4, 6), ConvField(4, layers=2)], ids=["mlp", "conv"])
def test_compiles_as_one_graph(field):
    z = torch.randn((3, 4, 5, 4)) if isinstance(field, ConvField) else torch.randn(3, 4)
    compiled = torch.compile(field, fullgraph=True, backend="aot_eager")
    for t in (torch.rand(3), torch.rand(()), 0.25, 0.75):
        torch.testing.assert_close(compiled(t, z), field(t, z))


@pytest.mark.parametrize("field", [MLPField(4, 6), ConvField(4, layers=2)], ids=["mlp", "conv"])
def test_vmap_over_samples_and_times_equals_the_batch(field):
    z = torch.randn((3, 4, 5, 4)) if isinstance(field, ConvField) else torch.randn(3, 4)
    t = torch.rand(3)
    torch.testing.assert_close(torch.func.vmap(field)(t, z), field(t, z))
    torch.testing.assert_close(torch.func.vmap(field, (None, 0))(t[0], z), field(t[0], z))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (dict(dim=0, hidden=4), ValueError, "dim must be at least 1, got 0"),
        (dict(dim=2.5, hidden=4), TypeError, "dim must be an integer, got float"),
        (dict(dim=2, hidden=0), ValueError, "hidden must be at least 1"),
        (dict(dim=2, hidden="64"), TypeError, "hidden must be an integer"),
        (dict(dim=2, hidden=4, depth=0), ValueError, "depth must be at least 1"),
        (dict(dim=2, hidden=4, depth=9), ValueError, "depth must be at most 8"),
        (dict(dim=2, hidden=(4, 4), depth=2), ValueError, "depth must be 3"),
        (dict(dim=2, hidden=4, activation="relu6"), ValueError, "activation 'relu6'"),
        (dict(dim=2, hidden=4, time="twice"), ValueError, "time must be one of every, once, none"),
    ],
)
def test_bad_mlp_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        MLPField(**arguments)


@pytest.mark.parametrize("arguments", [dict(channels=0), dict(channels=2, layers=0)])
def test_bad_conv_arguments_are_named(arguments):
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        ConvField(**arguments)


@pytest.mark.parametrize(
    ("t", "z", "words"),
    [
        (0.0, torch.zeros(2, 3), r"z must have size 4 along dimension -1, got shape \(2, 3\)"),
        (0.0, torch.zeros(()), "z must have size 4"),
        (torch.zeros(3), torch.zeros(2, 4), r"t must be a scalar .* got shape \(3,\) .*\(2, 4\)"),
        (torch.zeros(2, 1), torch.zeros(2, 4), "t must be a scalar"),
        (torch.zeros(4), torch.zeros(4), "t must be a scalar"),
    ],
)
def test_shapes_that_do_not_match_are_named(t, z, words):
    with pytest.raises(ValueError, match=words):
        MLPField(4, 6)(t, z)
