"""Modules with a regulariser: the penalty they keep, their modes, copies and errors."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import fastnode
from fastnode.nn import EncodedODE, MLPField, NeuralODE
from fastnode.regularize import RNODE, STEER, Exponential, Global, Local, TayNODE

REGULARIZERS = {
    "unbiased": lambda g: Local("unbiased", generator=g),
    "biased": lambda g: Local("biased", generator=g),
    "stiffness": lambda g: Local(kind="stiffness", generator=g),
    "per sample": lambda g: Local(per_sample=True, generator=g),
    "global": lambda g: Global(),
    "steer": lambda g: STEER(0.3, generator=g),
    "rnode": lambda g: RNODE(generator=g),
    "taynode": lambda g: TayNODE(2),
}


def generator():
    return torch.Generator().manual_seed(4)


@pytest.fixture(params=REGULARIZERS)
def regularizer(request):
    return REGULARIZERS[request.param](generator())


@pytest.fixture
def z0():
    return torch.randn(5, 3, generator=generator())


@pytest.fixture
def field():
    torch.manual_seed(0)
    return MLPField(3, 6, activation="tanh")


def test_training_keeps_the_penalty_for_the_loss(field, z0, regularizer):
    model = NeuralODE(field, regularizer=regularizer)
    (model(z0).square().mean() + model.regularization).backward()
    assert model.regularization.shape == () and model.regularization.isfinite()
    assert all(p.grad is not None for p in field.layers[0].parameters())
    steer = isinstance(regularizer, STEER)
    assert (model.regularization == 0) == steer


def test_evaluation_solves_as_without_it(field, z0, regularizer):
    model, plain = NeuralODE(field, regularizer=regularizer).eval(), NeuralODE(field)
    ts = torch.linspace(0, 2, 5)
    torch.testing.assert_close(model(z0, ts), plain(z0, ts))
    assert model.nfe == plain.nfe
    for each in (model, plain):
        assert each.regularization.shape == () and each.regularization == 0


def test_the_penalty_is_that_of_the_regulariser_over_solve(field, z0):
    model = NeuralODE(field, rtol=1e-4, atol=1e-5, regularizer=Local(generator=generator()))
    model(z0)
    control = fastnode.Controller(keeps_accepted=True)
    _, penalty = Local(generator=generator()).solve(
        field,
        z0,
        torch.tensor([0.0, 1.0], dtype=torch.float64),
        method="dopri5",
        rtol=1e-4,
        atol=1e-5,
        controller=control,
    )
    assert torch.equal(model.regularization, penalty)


@pytest.mark.parametrize("method", ["euler", "rk4"])
@pytest.mark.parametrize("options", [None, {"step_size": 0.25}])
def test_fixed_steps_stay_as_they_are(field, z0, method, options):
    model = NeuralODE(field, method, options=options, regularizer=Local())
    plain = NeuralODE(field, method, options=options)
    torch.testing.assert_close(model(z0), plain(z0))
    # The cubic that holds the random time needs the derivative at the end of its step.
    assert model.nfe - plain.nfe in (0, 1) and model.regularization > 0


def test_state_dict_knows_nothing_of_it(field, z0, regularizer):
    model = NeuralODE(field, regularizer=regularizer)
    model(z0)
    assert model.state_dict().keys() == NeuralODE(field).state_dict().keys()
    model.load_state_dict(NeuralODE(field).state_dict())


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_file(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_file])
def test_copies_continue_with_the_same_random_numbers(field, z0, regularizer, copied):
    model = NeuralODE(field, regularizer=regularizer)
    model(z0)
    other = copied(model)
    assert torch.equal(other.regularization, model.regularization)
    assert not other.regularization.requires_grad
    values = []
    for each in (model, other):
        state = each(z0)
        values.append((state, each.regularization))
        each.regularizer.step = 7
    assert torch.equal(values[0][0], values[1][0]) and torch.equal(values[0][1], values[1][1])


def test_encoded_models_take_one_too(z0, regularizer):
    torch.manual_seed(0)
    nets = nn.Linear(3, 4), MLPField(4, 6), nn.Linear(4, 2)
    model, plain = EncodedODE(*nets, regularizer=regularizer), EncodedODE(*nets)
    (model(z0).square().mean() + model.regularization).backward()
    model.eval()
    torch.testing.assert_close(model(z0), plain(z0))
    assert model.regularization == 0 and not model.regularization.requires_grad
    if not isinstance(regularizer, (Global, STEER)):
        unbiased = getattr(regularizer, "mode", "unbiased") == "unbiased"
        model.train()
        if unbiased:
            torch.testing.assert_close(model(z0, "euler", 4), plain(z0, "euler", 4))
            assert model.regularization > 0


def test_the_schedule_goes_by_the_step_that_the_trainer_sets(field, z0):
    model = NeuralODE(field, regularizer=Local(weight=Exponential(4.0, 1.0, 10)))
    values = []
    for step in (0, 10):
        model.regularizer.generator, model.regularizer.step = generator(), step
        model(z0)
        values.append(model.regularization.item())
    assert values[0] == pytest.approx(4 * values[1])


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda f: NeuralODE(f, regularizer="local"),
            TypeError,
            "regularizer must be a .* got str",
        ),
        (
            lambda f: NeuralODE(f, "euler", regularizer=Local("biased")),
            ValueError,
            "mode='biased' needs a method that chooses its steps",
        ),
        (
            lambda f: NeuralODE(f, "scipy_solver", regularizer=Local()),
            ValueError,
            "method must be one of .* got 'scipy_solver'",
        ),
        (
            lambda f: NeuralODE(f, options={"norm": max}, regularizer=Local()),
            ValueError,
            "options must be among first_step, .* got norm",
        ),
        (
            lambda f: NeuralODE(f, regularizer=STEER(1.5))(torch.ones(2, 3)),
            ValueError,
            "b must be below the distance of the last two times, 1, got 1.5",
        ),
    ],
)
def test_what_cannot_work_is_named(field, make, error, words):
    with pytest.raises(error, match=words):
        make(field)
