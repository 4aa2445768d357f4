"""CNF: densities against formulas, gradients, both traces, and native code against eager fields."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import pytest
import torch
from field_zoo import mlp
from selection import slow
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal

import fastnode
from fastnode.nn import CNF, MLPField, NeuralODE
from fastnode.regularize import RNODE, STEER, Global, Local, TayNODE

TIGHT = {"rtol": 1e-8, "atol": 1e-8}
needs_native = pytest.mark.skipif(not fastnode.extension.AVAILABLE, reason="no C++ extension")
NATIVE = pytest.param(True, marks=[pytest.mark.slow, needs_native])


class Linear(nn.Module):
    """dz/dt = A z, whose flow is that of the matrix exponential."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = nn.Parameter(torch.as_tensor(matrix, dtype=torch.float64))

    def forward(self, t, z):
        return z @ self.matrix.T


class Swirl(nn.Module):
    def __init__(self, hidden=8):
        super().__init__()
        self.net = mlp(3, hidden, 2)

    def forward(self, t, z):
        return self.net(torch.cat([z, t.expand(len(z), 1)], 1))


class Branch(Swirl):
    """Python decides by the values of the state, which no trace can follow."""

    def forward(self, t, z):
        return super().forward(t, z) if float(z.detach().sum()) > -1e9 else z


def swirl(dtype=torch.float64, hidden=8, **options):
    torch.manual_seed(0)
    field = Swirl(hidden).to(dtype)
    with torch.no_grad():
        for x in field.parameters():
            x.mul_(1.5)
    return CNF(field, dim=2, **options)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def samples(count, dtype=torch.float64, dim=2):
    return torch.randn(count, dim, dtype=dtype, generator=seeded(3))


A = [[0.3, -0.8, 0.1], [0.5, -0.4, 0.2], [0.0, 0.6, 0.2]]


@pytest.mark.parametrize("compile", [False, NATIVE])
def test_linear_field_has_the_density_of_its_flow(compile):
    flow = CNF(Linear(A), t0=0.2, t1=1.1, compile=compile, **TIGHT)
    x = samples(20, dim=3)
    root = torch.linalg.matrix_exp(0.9 * flow.field.matrix.detach())
    wanted = MultivariateNormal(torch.zeros(3, dtype=torch.float64), root @ root.T)
    torch.testing.assert_close(flow.log_prob(x), wanted.log_prob(x), rtol=1e-6, atol=1e-6)
    z, change = flow(x)
    torch.testing.assert_close(z, torch.linalg.solve(root, x.T).T, rtol=1e-6, atol=1e-6)
    volume = torch.linalg.slogdet(root).logabsdet
    torch.testing.assert_close(change, volume.expand(20), rtol=1e-6, atol=1e-6)


def test_density_integrates_to_one():
    flow = swirl(compile=False)
    line = torch.linspace(-8, 8, 81, dtype=torch.float64)
    with torch.no_grad():
        mass = flow.log_prob(torch.cartesian_prod(line, line)).exp().sum() * (16 / 80) ** 2
    assert abs(mass.item() - 1) < 1e-4


@pytest.mark.parametrize("noise", ["rademacher", slow("gaussian")])
def test_hutchinson_estimates_the_exact_density(noise):
    flow = swirl(noise=noise, compile=False)
    x = samples(1).expand(3000, 2)
    with torch.no_grad():
        exact = flow.log_prob(x[:1])
        found = flow.log_prob(x, seeded(), trace="hutchinson")
    spread = found.std().item()
    # Each sample has noise of its own.
    assert spread > 1e-3
    assert abs(found.mean() - exact).item() < 4 * spread / math.sqrt(3000)


def test_hutchinson_is_exact_where_no_terms_mix():
    # So are its steps: the columns of the noise must count in no norm.
    flow = CNF(Linear(torch.diag(torch.tensor([0.7, -1.5, 0.2]))), compile=False)
    x = 3 * samples(9, dim=3)
    exact, steps = flow.log_prob(x), flow.nfe
    torch.testing.assert_close(flow.log_prob(x, trace="hutchinson"), exact, rtol=1e-12, atol=1e-12)
    assert flow.nfe == steps > 8


def test_noise_is_drawn_anew_and_by_the_generator():
    flow = swirl(trace="hutchinson", compile=False)
    x = samples(5)
    assert not torch.equal(flow.log_prob(x), flow.log_prob(x))
    assert torch.equal(flow.log_prob(x, seeded(1)), flow.log_prob(x, seeded(1)))


def test_inverse_returns_to_the_data():
    flow = swirl(compile=False, **TIGHT)
    x = samples(10)
    z, change = flow(x)
    back, opposite = flow.inverse(z)
    torch.testing.assert_close(back, x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(opposite, -change, rtol=1e-6, atol=1e-6)
    normal = MultivariateNormal(torch.zeros(2, dtype=z.dtype), torch.eye(2, dtype=z.dtype))
    torch.testing.assert_close(normal.log_prob(z) + opposite, flow.log_prob(x))


def test_samples_have_the_density():
    flow = CNF(Linear(A), dim=3, compile=False, **TIGHT)
    x = flow.sample(4000, seeded())
    root = torch.linalg.matrix_exp(flow.field.matrix.detach())
    torch.testing.assert_close(torch.cov(x.T), root @ root.T, rtol=0, atol=0.15)
    assert x.dtype == torch.float64 and not x.requires_grad
    assert torch.equal(x, flow.sample(4000, seeded()))
    many = flow.sample((4, 1000), seeded())
    assert torch.equal(many.reshape(4000, 3), x)


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
@pytest.mark.parametrize("compile", [False, NATIVE])
def test_gradcheck_of_log_prob(compile, trace):
    steps = {"method": "rk4", "options": {"step_size": 0.5}}
    flow = swirl(hidden=3, trace=trace, compile=compile, **steps)
    names = list(dict(flow.named_parameters()))

    def log_prob(x, *held):
        given = dict(zip(names, held, strict=True))
        return torch.func.functional_call(flow, given, (x, seeded()))

    def parts(x, *held):
        z, change = log_prob(x, *held)
        return z.square().sum(1), change

    held = [p.detach().clone().requires_grad_() for p in flow.parameters()]
    assert torch.autograd.gradcheck(parts, (samples(4).requires_grad_(), *held))


@pytest.mark.parametrize("adjoint", ["checkpoint", slow("continuous"), slow(fastnode.Revolve(2))])
def test_adjoints_give_the_gradient(adjoint):
    x = samples(6)
    found = []
    for way in ("backprop", adjoint):
        flow = swirl(adjoint=way, compile=False, **TIGHT)
        flow.log_prob(x).sum().backward()
        found.append([p.grad for p in flow.parameters()])
    for ours, wanted in zip(found[1], found[0], strict=True):
        close = 1e-5 if adjoint == "continuous" else 1e-10
        torch.testing.assert_close(ours, wanted, rtol=close, atol=close)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float64, slow(torch.float32)])
@pytest.mark.parametrize("trace", ["exact", slow("hutchinson")])
@pytest.mark.parametrize("regularizer", [None, slow(RNODE(0.3, 0.2))])
def test_compiled_flow_equals_the_eager_one(dtype, trace, regularizer):
    x, found = samples(20, dtype), []
    for compile in (True, False):
        flow = swirl(dtype, trace=trace, compile=compile, regularizer=regularizer)
        y = x.clone().requires_grad_()
        log_prob = flow.log_prob(y, seeded())
        (log_prob.mean() + flow.regularization).backward()
        grads = [p.grad for p in (y, *flow.parameters())]
        found.append([log_prob.detach(), flow.regularization.detach(), *grads])
        found[-1].append(torch.tensor(flow.nfe))
    close = 1e-9 if dtype == torch.float64 else 2e-4
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=close, atol=close)


@pytest.mark.slow
@needs_native
def test_one_sample_compiles_as_well():
    flow, eager = swirl(compile=True), swirl(compile=False)
    x = samples(1)
    torch.testing.assert_close(flow.log_prob(x), eager.log_prob(x))
    torch.testing.assert_close(flow.sample(3, seeded()), eager.sample(3, seeded()))


def test_field_that_cannot_be_compiled_warns_once():
    flow = CNF(Branch().double(), dim=2)
    x = samples(4)
    with pytest.warns(UserWarning, match="solved without native code"):
        first = flow.log_prob(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = flow.log_prob(x)
    assert torch.equal(first, again)
    flow.compile_mode = False
    assert torch.equal(first, flow.log_prob(x))


@needs_native
def test_compile_true_raises_what_stands_in_the_way():
    with pytest.raises(fastnode.NotCompilable, match="value of a tensor"):
        CNF(Branch().double(), compile=True).log_prob(samples(4))


def test_state_dict_is_the_fields_alone():
    x = samples(4)
    flows = [swirl(compile=compile) for compile in (False, "auto")]
    before = [flow.log_prob(x) for flow in flows]
    keys = [f"field.{name}" for name in flows[0].field.state_dict()]
    assert all(list(flow.state_dict()) == keys for flow in flows)
    other = CNF(Swirl().double(), compile=False)
    other.load_state_dict(flows[1].state_dict())
    torch.testing.assert_close(other.log_prob(x), before[0])


def test_copies_have_parameters_of_their_own():
    flow, x = swirl(compile=False, regularizer=RNODE()), samples(4)
    expected = flow.log_prob(x)
    for other in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        assert torch.equal(other.log_prob(x), expected)
        with torch.no_grad():
            other.field.net[0].weight.zero_()
        assert not torch.equal(other.log_prob(x), expected)
        assert torch.equal(flow.log_prob(x), expected)


def test_a_replaced_field_is_solved():
    flow, x = swirl(compile=False), samples(4)
    flow.log_prob(x)
    flow.field = Linear(torch.zeros(2, 2))
    z, change = flow(x)
    assert torch.equal(z, x) and not change.any()


def test_float32_and_float64_agree():
    x = samples(6)
    wide, narrow = swirl(compile=False), swirl(torch.float32, compile=False)
    narrow.load_state_dict(wide.state_dict())
    found = narrow.log_prob(x.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wide.log_prob(x), rtol=1e-3, atol=1e-3)


def test_rnode_integrates_energy_and_jacobian():
    matrix = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    flow = CNF(Linear(matrix), t1=2.0, regularizer=RNODE(0.5, 0.25), compile=False, **TIGHT)
    x = samples(8)
    flow.log_prob(x)
    # A rotation keeps |f| = |x|, and |A|_F^2 = 2.
    energy = 2.0 * x.square().mean() / 2
    torch.testing.assert_close(flow.regularization, 0.5 * energy + 0.25 * 2.0 * 2 / 2)
    steps = flow.nfe
    flow.eval().log_prob(x)
    assert flow.nfe == steps and flow.regularization == 0


def test_rnode_is_the_one_of_neural_odes():
    flow, x = swirl(regularizer=RNODE(1.0, 0.0), compile=False, **TIGHT), samples(8)
    flow.log_prob(x)
    plain = NeuralODE(flow.field, t0=1.0, t1=0.0, regularizer=RNODE(1.0, 0.0), **TIGHT)
    plain(x)
    torch.testing.assert_close(flow.regularization, plain.regularization, rtol=1e-6, atol=1e-8)
    flow.regularization.backward()
    assert flow.field.net[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("regularizer", [Local(), slow(Local("biased")), slow(Global())])
def test_other_regularizers_penalise_the_solve(regularizer):
    flow = swirl(regularizer=regularizer, compile=False)
    flow.log_prob(samples(8))
    assert flow.regularization > 0
    flow.regularization.backward()
    assert flow.field.net[0].weight.grad.abs().sum() > 0


def test_steer_moves_the_end_in_training_only():
    flow, x = swirl(regularizer=STEER(0.3), compile=False), samples(4)
    assert not torch.equal(flow.log_prob(x), flow.log_prob(x))
    flow.eval()
    assert torch.equal(flow.log_prob(x), flow.log_prob(x))


def test_base_of_the_callers():
    x = samples(6)
    mean = torch.tensor([1.0, -2.0], dtype=torch.float64)
    base = Independent(Normal(mean, torch.ones(2, dtype=torch.float64)), 1)
    flow = CNF(Linear(torch.zeros(2, 2)), base=base, compile=False)
    torch.testing.assert_close(flow.log_prob(x), base.log_prob(x))
    assert flow.sample(5).shape == (5, 2)
    with pytest.raises(ValueError, match="generator"):
        flow.sample(5, seeded())
    flow.base = base.base_dist
    with pytest.raises(ValueError, match="Independent"):
        flow.log_prob(x)


def test_constant_field_changes_no_density():
    class Drift(nn.Module):
        def __init__(self):
            super().__init__()
            self.velocity = nn.Parameter(torch.ones(2, dtype=torch.float64))

        def forward(self, t, z):
            return self.velocity.expand_as(z)

    x = samples(5)
    for trace in ("exact", "hutchinson"):
        z, change = CNF(Drift(), compile=False, trace=trace)(x)
        torch.testing.assert_close(z, x - 1)
        assert not change.any()


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
@pytest.mark.parametrize("compile", [False, NATIVE])
def test_inference_mode_has_the_trace(compile, trace):
    flow, x = swirl(compile=compile, trace=trace), samples(5)
    expected = swirl(compile=False, trace=trace).log_prob(x, seeded()).detach()
    with torch.inference_mode():
        found = flow.log_prob(x, seeded())
    torch.testing.assert_close(found.clone(), expected)


@pytest.mark.parametrize("compile", [False, NATIVE])
def test_second_derivatives_of_densities(compile):
    flow = swirl(hidden=3, compile=compile, method="rk4")
    x = samples(3).requires_grad_()
    assert torch.autograd.gradgradcheck(flow.log_prob, (x,))


@pytest.mark.slow
def test_training_finds_the_density():
    flow = swirl()
    optimizer = torch.optim.Adam(flow.parameters(), 0.03)
    spread, generator = torch.tensor([2.0, 0.5], dtype=torch.float64), seeded()
    for _ in range(80):
        x = spread * torch.randn(256, 2, dtype=torch.float64, generator=generator)
        loss = -flow.log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = spread * samples(2000)
    base = Independent(Normal(torch.zeros_like(spread), spread), 1)
    with torch.no_grad():
        found, best = flow.log_prob(x), base.log_prob(x)
    assert best.mean() - 0.1 < found.mean() < best.mean() + 0.02
    # Steps of the optimiser reach native code.
    eager = CNF(flow.field, compile=False)
    torch.testing.assert_close(found, eager.log_prob(x).detach())


@pytest.mark.slow
def test_torch_compile_goes_round_the_solve():
    flow, x = swirl(compile=False), samples(5)
    torch.compiler.reset()
    found = torch.compile(lambda x: flow.log_prob(2 * x).mean(), backend="eager")(x)
    torch.testing.assert_close(found, flow.log_prob(2 * x).mean())


def test_dim_of_the_field_is_that_of_samples():
    assert CNF(MLPField(4, 8)).sample(3).shape == (3, 4)


def test_empty_batch_has_no_densities():
    flow = swirl(compile=False)
    assert flow.log_prob(samples(0)).shape == (0,)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"field": lambda t, z: z}, TypeError, "field must be a torch.nn.Module"),
        ({"method": "dopri"}, ValueError, "method must be one of"),
        ({"method": "scipy_solver"}, ValueError, "method must be one of"),
        ({"trace": "hutch"}, ValueError, "trace must be one of exact, hutchinson"),
        ({"noise": "normal"}, ValueError, "noise must be one of"),
        ({"compile": "always"}, ValueError, "compile must be True, False or 'auto'"),
        ({"atol": 0.0}, ValueError, "atol above it, got 1e-05 and 0.0"),
        ({"rtol": -1.0}, ValueError, "rtol must be at least 0"),
        ({"atol": torch.ones(3)}, TypeError, "atol must be a number, got Tensor"),
        ({"t1": 0.0}, ValueError, "t0 and t1 must differ"),
        ({"base": 3}, TypeError, "base must have log_prob and sample"),
        ({"dim": 0}, ValueError, "dim must be at least 1"),
        ({"regularizer": 1.0}, TypeError, "regularizer must be"),
        ({"regularizer": TayNODE()}, ValueError, "TayNODE"),
        ({"adjoint": "back"}, ValueError, "adjoint must be one of"),
        ({"options": {"norm": max}}, ValueError, "options must be among"),
        ({"compile": True, "method": "gl4"}, ValueError, "compile=True needs"),
        ({"compile": True, "adjoint": "continuous"}, ValueError, "compile=True needs"),
    ],
)
def test_wrong_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        CNF(**{"field": Swirl(), **options})


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[0.0, 1.0]], TypeError, "must be a tensor, got list"),
        (torch.ones(3, 2, dtype=torch.int64), TypeError, "float32 or float64"),
        # The noise would vanish in it.
        (torch.ones(3, 2, dtype=torch.float16), TypeError, "float32 or float64"),
        (torch.ones(2), ValueError, r"shape \[B, 2\], got \(2,\)"),
        (torch.ones(3, 4), ValueError, r"shape \[B, 2\], got \(3, 4\)"),
    ],
)
def test_wrong_samples_are_named(x, error, message):
    flow = CNF(Swirl(), dim=2)
    with pytest.raises(error, match=f"x must.*{message}|x {message}"):
        flow.log_prob(x)
    with pytest.raises(error, match=f"z must.*{message}|z {message}"):
        flow.inverse(x)


def test_wrong_calls_are_named():
    flow = CNF(Swirl())
    with pytest.raises(ValueError, match="dim must be given"):
        flow.sample(3)
    with pytest.raises(ValueError, match="shape must be at least 1"):
        swirl().sample(0)
    with pytest.raises(ValueError, match="trace must be one of"):
        flow.log_prob(torch.ones(2, 2), trace="none")

    class Wide(nn.Module):
        def forward(self, t, z):
            return torch.cat([z, z], 1)

    with pytest.raises(ValueError, match="field must return the shape of z"):
        CNF(Wide(), compile=False).log_prob(torch.ones(2, 2))

    class Detached(Swirl):
        @torch.no_grad()
        def forward(self, t, z):
            return super().forward(t, z)

    with pytest.raises(ValueError, match="runs? under torch.no_grad"):
        CNF(Detached(), compile=False).log_prob(torch.ones(2, 2))
