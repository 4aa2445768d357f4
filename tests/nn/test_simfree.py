"""Simulation-free training: the loss as its formula, its gradients, its targets, its wrappers."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastnode.flow import Linear, Path, sample_time
from fastnode.nn import LossModule, MLPField, SimulationFreeNODE

HALF = torch.pi / 2
FORMULAS = {
    "linear": (lambda t: 1 - t, lambda t: t, lambda t: -(t**0), lambda t: t**0),
    "concave": (
        lambda t: torch.cos(HALF * t),
        lambda t: torch.sin(HALF * t),
        lambda t: -HALF * torch.sin(HALF * t),
        lambda t: HALF * torch.cos(HALF * t),
    ),
    "convex": (
        lambda t: 1 - torch.sin(HALF * t),
        lambda t: 1 - torch.cos(HALF * t),
        lambda t: -HALF * torch.cos(HALF * t),
        lambda t: HALF * torch.sin(HALF * t),
    ),
}


def quadratic(t):
    return t * t


def rest(t):
    return 1 - t * t


def derivative(t):
    return 2 * t


def fall(t):
    return -2 * t


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def build(classes=3, **options):
    return SimulationFreeNODE(
        encoder=nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4)),
        label_encoder=nn.Linear(classes, 4),
        decoder=nn.Linear(4, classes),
        field=MLPField(4, 8),
        **options,
    )


def parameters_of(module):
    return list(module.parameters())


@pytest.mark.parametrize("path", ["linear", "concave", "convex"])
def test_loss_and_gradients_are_those_of_the_formula(path):
    model = build(path=path, label_noise=2.0, zero_probability=0.3, num_classes=3).double()
    x, y = torch.randn(16, 5, dtype=torch.float64), torch.randint(3, (16,))
    loss = model.loss(x, y, torch.Generator().manual_seed(7))

    generator = torch.Generator().manual_seed(7)
    t = sample_time(16, 0.3, dtype=torch.float64, generator=generator)
    noise = torch.randn(16, 4, dtype=torch.float64, generator=generator)
    a, b, da, db = (function(t)[:, None] for function in FORMULAS[path])
    labels = F.one_hot(y, 3).double()
    z0, z1 = model.encoder(x), model.label_encoder(labels)
    flow = ((model.field(t, a * z0 + b * z1) - (da * z0 + db * z1)) ** 2).mean()
    label = ((model.decoder(z1 + 2.0 * noise) - labels) ** 2).mean()

    torch.testing.assert_close(tuple(loss), (flow + label, flow, label))
    torch.testing.assert_close(
        torch.autograd.grad(loss.total, parameters_of(model)),
        torch.autograd.grad(flow + label, parameters_of(model)),
    )


def test_flow_loss_trains_all_but_the_decoder():
    model = build(num_classes=3)
    model.loss(torch.randn(16, 5), torch.randint(3, (16,))).flow.backward()
    for module in (model.encoder, model.label_encoder, model.field):
        assert all(p.grad is not None and p.grad.norm() > 0 for p in module.parameters())
    assert all(p.grad is None for p in model.decoder.parameters())


def test_class_numbers_match_one_hot_targets():
    model, x, y = build(num_classes=3), torch.randn(16, 5), torch.randint(3, (16,))
    losses = [
        model.loss(x, target, torch.Generator().manual_seed(1)).total
        for target in (y, y.int(), y.to(torch.uint8), F.one_hot(y, 3).float())
    ]
    assert len({loss.item() for loss in losses}) == 1


def test_regression_learns_a_function_at_one_step():
    model = build(classes=1, label_noise=1.0)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(200):
        x = torch.randn(64, 5)
        optimizer.zero_grad()
        model.loss(x, x[:, :1] - x[:, 1:2].relu()).total.backward()
        optimizer.step()
    x = torch.randn(256, 5)
    y = x[:, :1] - x[:, 1:2].relu()
    with torch.no_grad():
        assert F.mse_loss(model(x), y) < 0.3 * y.var()


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_prediction_by_euler_steps_and_by_dopri5(steps):
    model, x = build(), torch.randn(6, 5)
    z = model.encoder(x)
    for k in range(steps):
        z = z + model.field(torch.tensor(k / steps), z) / steps
    torch.testing.assert_close(model(x, steps=steps), model.decoder(z))
    assert model.nfe == steps
    assert model(x, method="dopri5", rtol=1e-4, atol=1e-4).shape == (6, 3)
    assert model.nfe > 6


def test_simfree_loss_uses_only_the_given_generator():
    model, x, y = build(num_classes=3), torch.randn(8, 5), torch.randint(3, (8,))
    state = torch.get_rng_state()
    first, second = (model.loss(x, y, torch.Generator().manual_seed(3)).total for _ in range(2))
    assert torch.equal(first, second) and torch.equal(state, torch.get_rng_state())
    torch.manual_seed(1)
    third = model.loss(x, y).total
    torch.manual_seed(1)
    assert torch.equal(third, model.loss(x, y).total) and not torch.equal(first, third)


@pytest.mark.parametrize("path", ["linear", Path(rest, quadratic, fall, derivative)])
def test_copies_and_saved_states_compute_the_same(path):
    model, x, y = build(path=path, num_classes=3), torch.randn(8, 5), torch.randint(3, (8,))
    expected = model.loss(x, y, torch.Generator().manual_seed(0)).total
    loaded = build(path=path, num_classes=3)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert torch.equal(other.loss(x, y, torch.Generator().manual_seed(0)).total, expected)
        assert torch.equal(other(x), model(x))
    assert set(model.state_dict()) == set(LossModule(model).model.state_dict())


def test_moves_to_another_precision():
    model, y = build(num_classes=3), torch.randint(3, (8,))
    for dtype, summed in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        loss = model.to(dtype).loss(torch.randn(8, 5, dtype=dtype), y)
        assert {part.dtype for part in loss} == {summed}
        loss.total.backward()


def test_autocast_keeps_the_loss_close_and_in_float32():
    model, x, y = build(num_classes=3), torch.randn(64, 5), torch.randint(3, (64,))
    expected = model.loss(x, y, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.loss(x, y, torch.Generator().manual_seed(0))
        loss.total.backward()
    assert {part.dtype for part in loss} == {torch.float32}
    # The noise is drawn in the label embedding's precision, so the label part is another sample.
    torch.testing.assert_close(loss.flow, expected.flow, rtol=0.02, atol=0.02)
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_loss_compiles_as_one_graph():
    model, x, y = build(num_classes=3, zero_probability=1.0), torch.randn(8, 5), torch.arange(8) % 3
    compiled = torch.compile(model.loss, fullgraph=True, backend="aot_eager")
    loss, expected = compiled(x, y), model.loss(x, y)
    torch.testing.assert_close(loss.flow, expected.flow)
    torch.testing.assert_close(
        torch.autograd.grad(loss.flow, parameters_of(model.encoder)),
        torch.autograd.grad(expected.flow, parameters_of(model.encoder)),
    )


def test_images_flow_in_their_own_shape():
    model = SimulationFreeNODE(
        encoder=nn.Unflatten(1, (2, 2, 2)),
        label_encoder=nn.Sequential(nn.Linear(3, 8), nn.Unflatten(1, (2, 2, 2))),
        decoder=nn.Sequential(nn.Flatten(), nn.Linear(8, 3)),
        field=Scale(),
        num_classes=3,
    )
    model.loss(torch.randn(4, 8), torch.randint(3, (4,))).total.backward()
    assert model(torch.randn(4, 8)).shape == (4, 3)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, t, z):
        return self.factor * z * torch.as_tensor(t).reshape(-1, 1, 1, 1)


X = torch.zeros(4, 5)
CLASSES = torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (dict(label_noise=-1.0), ValueError, "label_noise must be at least 0, got -1.0"),
        (dict(label_noise=float("nan")), ValueError, "label_noise must be at least 0, got nan"),
        (dict(zero_probability=1.5), ValueError, r"zero_probability must lie in \[0, 1\], got 1.5"),
        (dict(path="bent"), ValueError, "unknown path 'bent'"),
        (dict(path=Linear), TypeError, "path must be a name or a Path"),
        (dict(num_classes=0), ValueError, "num_classes must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(options, error, words):
    with pytest.raises(error, match=words):
        build(**options)


def test_modules_are_asked_for():
    with pytest.raises(TypeError, match="label_encoder must be a torch.nn.Module, got function"):
        SimulationFreeNODE(nn.Identity(), lambda y: y, nn.Identity(), nn.Identity())
    with pytest.raises(TypeError, match="model must be a torch.nn.Module"):
        LossModule(3)


@pytest.mark.parametrize(
    ("classes", "y", "error", "words"),
    [
        (3, [0, 1, 2, 0], TypeError, "y must be a tensor, got list"),
        (3, CLASSES.bool(), TypeError, "integer or floating dtype, got torch.bool"),
        (3, CLASSES + 3, ValueError, "y must lie in 0 to 2, got 3 to 3"),
        (3, CLASSES - 1, ValueError, "y must lie in 0 to 2, got -1 to -1"),
        (3, CLASSES[:, None], ValueError, r"integer y must be of shape \[B\], got \(4, 1\)"),
        (3, torch.zeros(4, 2), ValueError, r"must be of shape \[B, 3\], got \(4, 2\)"),
        (None, torch.zeros(4), ValueError, r"must be of shape \[B, k\], got \(4,\)"),
        (None, CLASSES, ValueError, "integer y needs num_classes"),
        (3, CLASSES[:2], ValueError, r"as many samples, got \(4, 5\), \(2,\)"),
        (None, torch.zeros(4, 3).double(), TypeError, "one dtype, got torch.float32 and torch.f"),
        (3, CLASSES.to("meta"), ValueError, "on one device, got cpu and meta"),
    ],
)
def test_bad_targets_are_named(classes, y, error, words):
    with pytest.raises(error, match=words):
        build(num_classes=classes).loss(X, y)


def test_shapes_of_embeddings_and_predictions_must_match():
    y = torch.zeros(4, 3)
    model = build()
    model.decoder = nn.Linear(4, 1)
    with pytest.raises(ValueError, match=r"decoder must return .* \(4, 3\), got \(4, 1\)"):
        model.loss(X, y)
    model.label_encoder = nn.Linear(3, 6)
    with pytest.raises(ValueError, match="z1"):
        model.loss(X, y)
