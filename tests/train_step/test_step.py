"""TrainStep against the loop that a user would write."""

from __future__ import annotations

import copy
import warnings
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnode
from fastnode.flow import flow_loss, get_path
from fastnode.nn import MLPField, SimulationFreeNODE

CLOSE = {torch.float32: 1e-5, torch.float64: 1e-12}


def simfree(path: str = "linear", classes: int | None = None) -> nn.Module:
    outputs = classes or 1
    return SimulationFreeNODE(
        nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8)),
        nn.Linear(outputs, 8),
        nn.Linear(8, outputs),
        MLPField(8, 12),
        path,
        num_classes=classes,
    )


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.LayerNorm(8), nn.Linear(8, 4))


def regression(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x)[:, :1], y)


def classification(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y, label_smoothing=0.1)


class Parts(NamedTuple):
    size: Tensor
    total: Tensor


def summed(model: nn.Module, x: Tensor, y: Tensor) -> Parts:
    size = model(x).square().sum()
    return Parts(size, size + (model(x)[:, 0] - y[:, 0]).abs().sum())


def matching(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Flow matching written with this library's parts, from noise."""
    noise = torch.randn_like(x)
    t, zt, target = get_path("concave").draw(noise, x)
    return flow_loss(model(torch.cat([zt, t[:, None]], 1)), target)


def by_hand(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    noise, t = torch.randn(x.shape, dtype=x.dtype), torch.rand(len(x), 1, dtype=x.dtype)
    return (model(torch.cat([(1 - t) * noise + t * x, t], 1)) - (x - noise)).square().mean()


def velocity() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def data(classes: int | None, dtype: torch.dtype, count: int = 21) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(5)
    x = torch.randn(count, 3, dtype=dtype, generator=source)
    if classes:
        return x, torch.randint(classes, (count,), generator=source)
    return x, torch.randn(count, 1, dtype=dtype, generator=source)


CASES = {
    "simfree": (simfree, None, None),
    "regression": (net, regression, None),
    "classification": (net, classification, 4),
    "matching": (velocity, matching, None),
    "summed": (net, summed, None),
    "by_hand": (velocity, by_hand, None),
    "concave": (lambda: simfree("concave"), None, None),
    "classes": (lambda: simfree(classes=3), None, 3),
}
SLOW = ("summed", "by_hand", "concave", "classes")
OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, fused=True),
    "amsgrad": lambda p: torch.optim.Adam(p, 1e-2, weight_decay=0.1, amsgrad=True, fused=True),
    "adamax": lambda p: torch.optim.Adamax(p, 1e-2, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, 1e-3, 0.9, weight_decay=0.1, nesterov=True, fused=True),
    "plain_sgd": lambda p: torch.optim.SGD(p, 1e-3, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3),
}


def by_slow(names: object, slow: object) -> list[object]:
    return [pytest.param(n, marks=pytest.mark.slow if n in slow else ()) for n in names]  # type: ignore


def plain_step(model, optimizer, loss, clip, *rows, generator=None):
    keywords = {} if generator is None else {"generator": generator}
    optimizer.zero_grad()
    found = loss(model, *rows, **keywords)
    (found if isinstance(found, Tensor) else found.total).backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return found


def compare(make, loss, classes, optimizer, dtype, clip=None, steps=10, engine="compiled"):
    torch.manual_seed(0)
    ours = make().to(dtype)
    plain = copy.deepcopy(ours)
    x, y = data(classes, dtype)
    step = fastnode.TrainStep(ours, optimizer(ours.parameters()), loss, clip, engine)
    other = optimizer(plain.parameters())
    used = type(plain).loss if loss is None else loss
    for i in range(steps):
        torch.manual_seed(i)
        found = step(x, y)
        torch.manual_seed(i)
        expected = plain_step(plain, other, used, clip, x, y)
        torch.testing.assert_close(
            found, tree_detached(expected), rtol=CLOSE[dtype], atol=CLOSE[dtype]
        )
    for (name, p), q in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(
            p, q, rtol=CLOSE[dtype] * 10, atol=CLOSE[dtype] * 10, msg=lambda m, n=name: f"{n}: {m}"
        )
    return step, other


def tree_detached(x):
    return torch.utils._pytree.tree_map_only(Tensor, Tensor.detach, x)


@pytest.mark.parametrize("case", by_slow(CASES, SLOW))
def test_step_equals_the_plain_loop(case: str) -> None:
    make, loss, classes = CASES[case]
    compare(make, loss, classes, OPTIMIZERS["adamw"], torch.float64)


def test_step_in_float32_and_eager_update() -> None:
    compare(simfree, None, None, OPTIMIZERS["adamw"], torch.float32)
    compare(simfree, None, None, OPTIMIZERS["adamw"], torch.float64, engine="eager")


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("engine", ["compiled", "eager"])
def test_step_with_each_optimizer(name: str, engine: str) -> None:
    step, other = compare(
        net, regression, None, OPTIMIZERS[name], torch.float64, clip=0.5, engine=engine
    )
    ours, theirs = step.optimizer.state_dict(), other.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for one, two in zip(ours["state"].values(), theirs["state"].values(), strict=True):
        torch.testing.assert_close(dict(one), dict(two), rtol=1e-10, atol=1e-12)
        assert {k: v.dtype for k, v in one.items()} == {k: v.dtype for k, v in two.items()}


def test_step_updates_are_those_of_torchs_fused_kernel() -> None:
    torch.manual_seed(0)
    ours, plain = net(), None
    plain = copy.deepcopy(ours)
    x, y = data(None, torch.float32)
    step = fastnode.TrainStep(ours, OPTIMIZERS["adamw"](ours.parameters()), regression)
    other = OPTIMIZERS["adamw"](plain.parameters())
    for _ in range(3):
        code = step._codes.find((x, y), len(x), False)
        step(x, y)
        for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
            q.grad = code.gradients[p].clone()
        other.step()
    for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)


def test_run_of_compiled_and_eager_steps_are_equal() -> None:
    torch.manual_seed(0)
    models = [simfree().double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    x, y = data(None, torch.float64, 37)
    losses, reports = [], []
    for model, engine in zip(models, ("compiled", "eager"), strict=True):
        step = fastnode.TrainStep(model, OPTIMIZERS["adamw"](model.parameters()), engine=engine)
        source = torch.Generator().manual_seed(3)
        losses.append(
            step.run(
                x, y, steps=23, batch_size=21, generator=source, every=10, progress=reports.append
            )
        )
        assert step.steps == 23
    torch.testing.assert_close(*losses, rtol=1e-11, atol=1e-12)
    assert [each.step for each in reports] == [10, 20, 23] * 2
    assert reports[0].loss == pytest.approx(float(losses[0][:10].mean()))


def test_run_takes_every_sample_once_an_epoch() -> None:
    from fastnode.train_step.step import _Order

    order = _Order(10, 4, torch.Generator().manual_seed(0), torch.device("cpu"))
    rows = torch.cat([order.next(2).reshape(-1), order.next(3).reshape(-1)])
    assert sorted(rows[:10].tolist()) == sorted(rows[10:20].tolist()) == list(range(10))


def test_step_sees_changes_of_settings_and_state() -> None:
    torch.manual_seed(0)
    ours = net().double()
    plain = copy.deepcopy(ours)
    x, y = data(None, torch.float64)
    step = fastnode.TrainStep(ours, OPTIMIZERS["adamw"](ours.parameters()), regression)
    other = OPTIMIZERS["adamw"](plain.parameters())
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in (step.optimizer, other)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(6):
            step(x, y)
            plain_step(plain, other, regression, None, x, y)
            for each in schedules:
                each.step()
            if i == 3:
                for each in (step.optimizer, other):
                    each.load_state_dict(copy.deepcopy(each.state_dict()))
                first = next(ours.parameters())
                first.data = first.data * 1
    for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)


def test_step_sees_another_value_that_the_loss_reads() -> None:
    weight = [1.0]
    model = net().double()
    before = copy.deepcopy(model.state_dict())
    x, y = data(None, torch.float64)
    loss = lambda m, x, y: weight[0] * F.mse_loss(m(x)[:, :1], y)  # noqa: E731
    step = fastnode.TrainStep(model, torch.optim.SGD(model.parameters(), 0.0), loss)
    first = step(x, y)
    weight[0] = 2.0
    torch.testing.assert_close(step(x, y), 2 * first)
    assert step.reason is None
    assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items())


def test_step_of_what_mixes_samples_is_eager_with_one_warning() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 1))
    plain = copy.deepcopy(model)
    x, y = data(None, torch.float32)
    optimizers = [OPTIMIZERS["adamw"](m.parameters()) for m in (model, plain)]
    step = fastnode.TrainStep(model, optimizers[0], regression)
    with pytest.warns(UserWarning, match="batch normalisation") as seen:
        for _ in range(3):
            step(x, y)
    assert len(seen) == 1 and "batch norm" in (step.reason or "")
    for _ in range(3):
        plain_step(plain, optimizers[1], regression, None, x, y)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name])
    with pytest.raises(fastnode.NotCompilable, match="batch normalisation"):
        fastnode.TrainStep(model, optimizers[0], regression, engine="compiled")(x, y)


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (lambda m, x, y: F.mse_loss(m(x)[:, :1], y) / x.std(), "neither the mean nor the sum"),
        (lambda m, x, y: F.dropout(m(x), 0.5).square().mean(), "random|different"),
        (lambda m, x, y: m(x).square().mean() * torch.rand(()), "one row for each sample"),
        (lambda m, x, y: m(x), "scalars"),
    ],
)
def test_step_compiled_says_why_it_cannot(loss, reason) -> None:
    model = net()
    x, y = data(None, torch.float32)
    step = fastnode.TrainStep(
        model, OPTIMIZERS["adamw"](model.parameters()), loss, None, "compiled"
    )
    with pytest.raises(fastnode.NotCompilable, match=reason):
        step(x, y)


def test_step_of_a_wide_net_is_eager_without_a_warning() -> None:
    model = nn.Sequential(nn.Linear(3, 700), nn.Linear(700, 700), nn.Linear(700, 1))
    x, y = data(None, torch.float32)
    step = fastnode.TrainStep(model, OPTIMIZERS["adamw"](model.parameters()), regression)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(x, y)
    assert "PyTorch's products are faster" in (step.reason or "")


@pytest.mark.parametrize("engine", ["compiled", "eager"])
def test_step_with_a_loss_that_is_not_finite(engine: str) -> None:
    torch.manual_seed(0)
    model = net()
    x, y = data(None, torch.float32, 40)
    step = fastnode.TrainStep(
        model, OPTIMIZERS["adamw"](model.parameters()), regression, 1.0, engine
    )
    step(x, y)
    before = copy.deepcopy((model.state_dict(), step.optimizer.state_dict()))
    with pytest.raises(FloatingPointError, match="nan in step 2"):
        step(x, y * float("nan"))
    after = (model.state_dict(), step.optimizer.state_dict())
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    y[7] = float("inf")
    with pytest.raises(FloatingPointError, match="inf in step"):
        step.run(x, y, steps=30, batch_size=4, generator=torch.Generator().manual_seed(0))
    assert 1 <= step.steps < 12
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_step_with_a_class_that_there_is_not() -> None:
    model = net()
    x, _ = data(None, torch.float32)
    step = fastnode.TrainStep(model, OPTIMIZERS["adamw"](model.parameters()), classification)
    y = torch.zeros(len(x), dtype=torch.int64)
    step(x, y)
    y[5] = 4
    with pytest.raises(IndexError, match="out of bounds"):
        step(x, y)
    y[5] = -100
    # cross_entropy leaves such samples out.
    assert torch.isfinite(step(x, y))
    assert step.steps == 2


def test_step_refuses_bad_arguments() -> None:
    model, other = net(), net()
    adam = OPTIMIZERS["adamw"](model.parameters())
    for arguments, error, message in (
        ((3, adam, regression), TypeError, "model must be"),
        ((model, 3, regression), TypeError, "optimizer must be"),
        ((model, torch.optim.LBFGS(model.parameters()), regression), TypeError, "closure"),
        ((model, adam), TypeError, "no method loss"),
        ((model, adam, 3), TypeError, "loss must be callable"),
        ((model, adam, regression, 0.0), ValueError, "clip"),
        ((model, adam, regression, None, "fast"), ValueError, "engine"),
        ((other, adam, regression), ValueError, "not the model's"),
    ):
        with pytest.raises(error, match=message):
            fastnode.TrainStep(*arguments)
    for p in other.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter"):
        fastnode.TrainStep(other, OPTIMIZERS["adamw"](other.parameters()), regression)
    step = fastnode.TrainStep(model, adam, regression)
    x, y = data(None, torch.float32)
    for rows, error in (((), TypeError), ((x, 3), TypeError), ((x, y[:3]), ValueError)):
        with pytest.raises(error):
            step(*rows)
    for keywords in ({"steps": 0, "batch_size": 3}, {"steps": 3, "batch_size": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            step.run(x, y, **keywords)
    with pytest.raises(TypeError, match="batch_size must be an int"):
        step.run(x, y, steps=3, batch_size=2.5)


def test_step_with_frozen_and_added_parameters() -> None:
    torch.manual_seed(0)
    model = net()
    adam = OPTIMIZERS["adamw"](model.parameters())
    step = fastnode.TrainStep(model, adam, regression)
    x, y = data(None, torch.float32)
    step(x, y)
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    step(x, y)
    assert torch.equal(model[0].weight, before["0.weight"])
    assert not torch.equal(model[3].weight, before["3.weight"])
    model.append(nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"4\.weight was added"):
        step(x, y)
    adam.add_param_group({"params": model[4].parameters()})
    assert torch.isfinite(step(x, y)) and step.reason is None


def test_step_with_a_batch_of_another_size_and_threads() -> None:
    torch.manual_seed(0)
    model = net().double()
    sgd = torch.optim.SGD(model.parameters(), 0.0)
    step = fastnode.TrainStep(model, sgd, regression, engine="compiled")
    threads = torch.get_num_threads()
    try:
        for count in (1, 3, 8, 50, 3001):
            x, y = data(None, torch.float64, count)
            expected = regression(model, x, y)
            wanted = torch.autograd.grad(expected, list(model.parameters()))
            for each in (1, 3):
                torch.set_num_threads(each)
                torch.testing.assert_close(step(x, y), expected.detach())
                found = step._code.gradients
                for p, g in zip(model.parameters(), wanted, strict=True):
                    torch.testing.assert_close(found[p], g, rtol=1e-10, atol=1e-12)
    finally:
        torch.set_num_threads(threads)


def test_step_gradients_pass_gradcheck() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 1)).double()
    sgd = torch.optim.SGD(model.parameters(), 0.0)
    step = fastnode.TrainStep(model, sgd, regression, engine="compiled")
    x, y = data(None, torch.float64, 9)
    names = [n for n, _ in model.named_parameters()]

    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *parameters):
            with torch.no_grad():
                for name, p in zip(names, parameters, strict=True):
                    model.get_parameter(name).copy_(p)
            found = step(x, y)
            ctx.gradients = [step._code.gradients[p].clone() for p in model.parameters()]
            return found

        @staticmethod
        def backward(ctx, g):
            return tuple(g * each for each in ctx.gradients)

    given = [p.detach().clone().requires_grad_() for p in model.parameters()]
    assert torch.autograd.gradcheck(Loss.apply, given)
