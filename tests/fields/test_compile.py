"""compile_field: solves and gradients against the module itself, refusals, and what is noticed."""

from __future__ import annotations

import copy
import itertools
import pickle
import warnings

import pytest
import torch
from field_zoo import FIELDS, REFUSED, mlp
from selection import slow
from torch import nn

import fastnode
from fastnode.fields.compile import CompiledField

pytestmark = pytest.mark.skipif(not fastnode.extension.AVAILABLE, reason="no C++ extension")

FAST = [("convolutions", 2), ("attention", 13)]
TIMES = torch.tensor([0.0, 0.3, 0.5], dtype=torch.float64)
TIGHT = {"method": "dopri5", "rtol": 1e-7, "atol": 1e-9}


def make(name, batch, dtype=torch.float64):
    build, shape = FIELDS[name]
    torch.manual_seed(0)
    module = build().to(dtype)
    y0 = 0.5 * torch.randn(batch, *shape, dtype=dtype)
    return module, y0


def gradients(func, module, y0, run):
    y0 = y0.clone().requires_grad_()
    ys = run(func, y0)
    inputs = [y0, *module.parameters()]
    found = torch.autograd.grad(ys.square().sum(), inputs, allow_unused=True)
    return ys, [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def agree(ours, wanted, close):
    scale = wanted.abs().max().clamp(min=1)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=float(close * scale))


@pytest.mark.parametrize(
    ("name", "batch"),
    [case if case in FAST else slow(*case) for case in itertools.product(FIELDS, [2, 13])],
)
def test_solves_and_gradients_are_the_modules(name, batch):
    module, y0 = make(name, batch)
    compiled = fastnode.compile_field(module, y0)

    def run(engine):
        def solve(func, y0):
            return fastnode.solve(func, y0, TIMES, engine=engine, **TIGHT).ys

        return solve

    ours, by_ours = gradients(compiled, module, y0, run("fused"))
    wanted, by_wanted = gradients(module, module, y0, run("native"))
    agree(ours, wanted, 1e-7)
    for g, w in zip(by_ours, by_wanted, strict=True):
        agree(g, w, 1e-6)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compiled_is_refused(name):
    build, shape, reason = REFUSED[name]
    torch.manual_seed(0)
    with pytest.raises(fastnode.NotCompilable, match=reason):
        fastnode.compile_field(build(), torch.randn(6, *shape))


@pytest.mark.parametrize("batch", [slow(3), 40])
@pytest.mark.parametrize("method", ["euler", "rk4", "bosh3", "dopri8"])
def test_methods_of_odeint_agree_in_float32(method, batch):
    module, y0 = make("mlp", batch, torch.float32)
    compiled = fastnode.compile_field(module, y0)
    tolerances = {} if method in ("euler", "rk4") else {"rtol": 1e-5, "atol": 1e-5}
    options = {"method": method, **tolerances}

    def run(func, y0):
        return fastnode.odeint(func, y0, TIMES.float(), **options)

    ours, by_ours = gradients(compiled, module, y0, run)
    wanted, by_wanted = gradients(module, module, y0, run)
    agree(ours, wanted, 1e-5)
    for g, w in zip(by_ours, by_wanted, strict=True):
        agree(g, w, 2e-4)


@pytest.mark.parametrize("batch", [slow(3), 21])
@pytest.mark.parametrize("name", [slow("residual"), slow("gru-ode"), "rows of times"])
def test_per_sample_stepping(name, batch):
    module, y0 = make(name, batch)
    compiled = fastnode.compile_field(module, y0)
    times = TIMES * (1 + torch.arange(batch)[:, None] / batch)

    def run(engine):
        def solve(func, y0):
            options = {"per_sample": True, "engine": engine, **TIGHT}
            return fastnode.solve(func, y0, times, **options).ys

        return solve

    with torch.no_grad():
        agree(run("fused")(compiled, y0), run("reference")(module, y0), 1e-7)
    ours, by_ours = gradients(compiled, module, y0, run("auto"))
    wanted, by_wanted = gradients(module, module, y0, run("reference"))
    agree(ours, wanted, 1e-7)
    for g, w in zip(by_ours, by_wanted, strict=True):
        agree(g, w, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", ["checkpoint", fastnode.Revolve(2)])
def test_adjoints_give_the_gradient_of_backprop(adjoint):
    module, y0 = make("exact trace", 5)
    compiled = fastnode.compile_field(module, y0)

    def run(adjoint):
        def solve(func, y0):
            options = {"adjoint": adjoint, "engine": "fused", **TIGHT}
            return fastnode.solve(func, y0, TIMES, **options).ys

        return solve

    _, ours = gradients(compiled, module, y0, run(adjoint))
    _, wanted = gradients(compiled, module, y0, run("backprop"))
    for g, w in zip(ours, wanted, strict=True):
        agree(g, w, 1e-12)


class Switched(nn.Module):
    """Reads attributes and its mode in forward."""

    def __init__(self):
        super().__init__()
        self.net = mlp(4, 8, 4)
        self.norm = nn.BatchNorm1d(4)
        self.factor = 1.0

    def forward(self, t, y):
        y = self.factor * self.net(y)
        return y if self.training else self.norm(y)


def changed(change):
    torch.manual_seed(0)
    module = Switched()
    y0 = torch.randn(5, 4)
    compiled = fastnode.compile_field(module, y0)
    fastnode.odeint(compiled, y0, TIMES)
    change(module)
    ours = fastnode.odeint(compiled, y0, TIMES)
    torch.testing.assert_close(ours, fastnode.odeint(module, y0, TIMES), rtol=1e-4, atol=1e-5)


def replace_parameter(module):
    module.net[0].weight = nn.Parameter(torch.randn(8, 4))


def step_optimizer(module):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.net(torch.ones(2, 4)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    "change",
    [
        lambda module: module.eval(),
        slow(lambda module: setattr(module, "factor", 2.0)),
        slow(lambda module: setattr(module.net, "1", nn.ReLU())),
        lambda module: module.load_state_dict(Switched().state_dict()),
        replace_parameter,
        step_optimizer,
    ],
    ids=["eval", "attribute", "module", "state dict", "parameter", "optimizer"],
)
def test_changes_of_the_module_are_noticed(change):
    changed(change)


def test_functional_call_gives_gradients_of_its_tensors():
    torch.manual_seed(0)
    module, y0 = Plain(), torch.randn(5, 4)
    compiled = fastnode.compile_field(module, y0)

    def gradients(func, prefix):
        held = {name: (2 * x.detach()).requires_grad_() for name, x in module.named_parameters()}

        class Loss(nn.Module):
            def __init__(self):
                super().__init__()
                self.field = func

            def forward(self):
                return fastnode.odeint(self.field, y0, TIMES)[-1].square().sum()

        named = {prefix + name: x for name, x in held.items()}
        loss = torch.func.functional_call(Loss(), named, ())
        return torch.autograd.grad(loss, list(held.values()))

    ours, wanted = gradients(compiled, "field.module."), gradients(module, "field.")
    for g, w in zip(ours, wanted, strict=True):
        assert w.abs().max() > 0
        agree(g, w, 1e-4)


def test_a_buffer_that_gets_a_gradient_later():
    module, y0 = Plain(), torch.randn(5, 4)
    del module.scale
    module.register_buffer("scale", torch.ones(4))
    compiled = fastnode.compile_field(module, y0)
    module.scale.requires_grad_()
    found = [
        torch.autograd.grad(fastnode.odeint(func, y0, TIMES)[-1].sum(), module.scale)[0]
        for func in (compiled, module)
    ]
    assert found[1].abs().max() > 0
    agree(*found, 1e-4)


def test_indices_that_change_in_place_are_noticed():
    module, y0 = make("message passing", 5)
    compiled = fastnode.compile_field(module, y0)
    module.source.copy_(module.source.flip(0))
    with torch.no_grad():
        ours = fastnode.solve(compiled, y0, TIMES, engine="fused", **TIGHT).ys
        agree(ours, fastnode.solve(module, y0, TIMES, **TIGHT).ys, 1e-7)


def test_what_was_refused_stays_refused():
    """Samples that depend on each other for one shape of the state alone."""

    class Sometimes(nn.Module):
        def forward(self, t, y):
            return y - y.mean(0) if y.shape[1] == 3 else -y

    compiled = fastnode.compile_field(Sometimes(), torch.randn(5, 4))
    y0 = torch.randn(5, 3)
    for _ in range(2):
        with pytest.warns(UserWarning, match="depend on each other"):
            ours = fastnode.odeint(compiled, y0, TIMES)
        torch.testing.assert_close(ours, fastnode.odeint(Sometimes(), y0, TIMES))


@torch.no_grad()
def test_other_dtypes_and_shapes_are_compiled_anew():
    module, y0 = make("convolutions", 5, torch.float32)
    compiled = fastnode.compile_field(module, y0)
    for state in (y0[:, :, :4].contiguous(), y0[:1]):
        ours = fastnode.solve(compiled, state, TIMES, engine="fused").ys
        agree(ours, fastnode.solve(module, state, TIMES).ys, 1e-4)
    module.double()
    ours = fastnode.solve(compiled, y0.double(), TIMES, engine="fused").ys
    torch.testing.assert_close(ours, fastnode.solve(module, y0.double(), TIMES).ys)


@pytest.mark.slow
def test_images_that_no_stack_holds_are_convolved():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh()).double()

    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = module

        def forward(self, t, y):
            return self.net(y)

    y0 = torch.randn(1, 4, 320, 320, dtype=torch.float64)
    compiled = fastnode.compile_field(Field(), y0)

    def run(func, y0):
        return fastnode.solve(func, y0, TIMES[:2], method="euler").ys

    ours, by_ours = gradients(compiled, Field(), y0, run)
    wanted, by_wanted = gradients(Field(), Field(), y0, run)
    agree(ours, wanted, 1e-12)
    for g, w in zip(by_ours, by_wanted, strict=True):
        agree(g, w, 1e-10)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_have_parameters_of_their_own(copied):
    torch.manual_seed(0)
    compiled = fastnode.compile_field(mlp_field(), torch.randn(5, 4))
    other = copied(compiled)
    with torch.no_grad():
        for x in other.parameters():
            x.mul_(2)
    y0 = torch.randn(5, 4)
    ours = fastnode.solve(other, y0, TIMES, engine="fused").ys
    torch.testing.assert_close(ours, fastnode.solve(other.module, y0, TIMES).ys)
    assert not torch.allclose(ours, fastnode.solve(compiled, y0, TIMES).ys)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp(4, 8, 4)
        self.scale = 0.5

    def forward(self, t, y):
        return self.scale * self.net(y)


def mlp_field():
    return Plain()


def test_the_result_calls_the_module_and_has_its_attributes():
    module = Plain()
    compiled = fastnode.compile_field(module, torch.randn(5, 4))
    assert isinstance(compiled, CompiledField) and compiled.scale == 0.5
    y = torch.randn(2, 4)
    assert torch.equal(compiled(torch.tensor(0.0), y), module(torch.tensor(0.0), y))
    assert fastnode.compile_field(compiled, y) is compiled


def test_modules_that_solve_take_it():
    module, y0 = Plain(), torch.randn(6, 4)
    compiled = fastnode.compile_field(module, y0)
    ours = fastnode.nn.NeuralODE(compiled, "dopri5")
    plain = fastnode.nn.NeuralODE(module, "dopri5")
    torch.testing.assert_close(ours(y0), plain(y0))
    assert ours.nfe == plain.nfe


def test_a_hook_added_later_goes_by_the_module():
    module, y0 = Plain(), torch.randn(5, 4)
    compiled = fastnode.compile_field(module, y0)
    module.net.register_forward_hook(lambda module, args, result: 0 * result)
    assert torch.equal(fastnode.odeint(compiled, y0, TIMES)[-1], y0)


def test_a_tensor_that_is_no_buffer_is_refused():
    module = Plain()
    module.scale = torch.full((4,), 2.0)
    with pytest.raises(fastnode.NotCompilable, match="register_buffer"):
        fastnode.compile_field(module, torch.randn(3, 4))


@pytest.mark.parametrize(
    ("module", "y0", "error", "message"),
    [
        (3, torch.ones(2, 2), TypeError, "nn.Module or a function"),
        (Plain(), [1.0], TypeError, "y0 must be of tensors"),
        (Plain(), (), ValueError, "at least one tensor"),
        (Plain(), (torch.ones(2, 4), torch.ones(3, 4)), ValueError, "with one B"),
        (Plain(), torch.ones(2, 4, dtype=torch.int64), TypeError, "float32 or float64"),
        (Plain(), torch.ones(4), ValueError, "with samples in rows"),
        (Plain(), torch.ones(0, 4), ValueError, "with samples in rows"),
        (Plain(), torch.ones(2, 4, dtype=torch.float64), ValueError, "float32 and the state"),
    ],
    ids=range(8),
)
def test_wrong_arguments_are_named(module, y0, error, message):
    with pytest.raises(error, match=message):
        fastnode.compile_field(module, y0)


def test_a_refusal_names_the_operation_and_the_line():
    class Solved(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.matrix = mlp(4, 8, 4), nn.Linear(4, 4)

        def forward(self, t, y):
            return torch.linalg.solve(self.matrix.weight, self.net(y)[..., None])[..., 0]

    with pytest.raises(fastnode.NotCompilable, match="linalg_solve") as caught:
        fastnode.compile_field(Solved(), torch.randn(3, 4))
    assert "test_compile.py" in str(caught.value)


def test_sorting_does_not_lose_nan():
    from fastnode.fields.compile import evaluate

    class Sorted(nn.Module):
        def forward(self, t, y):
            return torch.sort(torch.log(y), dim=-1).values

    y = torch.rand(5, 4) + 0.1
    compiled = fastnode.compile_field(Sorted(), y)
    torch.testing.assert_close(evaluate(compiled, y, 0.0), Sorted()(None, y))
    y[2, 1] = -1
    assert evaluate(compiled, y, 0.0).isnan().any(1).tolist() == [False, False, True, False, False]


def test_auto_goes_on_natively_where_code_cannot_be_made(monkeypatch):
    from fastnode.fields import toolchain

    module, y0 = Plain(), torch.randn(5, 4)
    compiled = fastnode.compile_field(module, y0)

    def fails(sources, flags):
        raise fastnode.NotCompilable("the compiler is gone")

    monkeypatch.setattr(toolchain, "build", fails)
    other = torch.randn(3, 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = fastnode.odeint(compiled, other, TIMES)
    torch.testing.assert_close(ours, fastnode.odeint(module, other, TIMES))
    assert any("the compiler is gone" in str(each.message) for each in caught)
    with pytest.raises(fastnode.NotCompilable):
        fastnode.solve(compiled, other, TIMES, engine="fused")
