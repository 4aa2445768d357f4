"""Local regularisation: its value and gradient, where it looks, and what it leaves alone."""

import math

import pytest
import torch

import fastnode
from fastnode.engines.methods import ADAPTIVE
from fastnode.nn import MLPField
from fastnode.regularize import Exponential, Local

TOLERANCES = {"rtol": 1e-2, "atol": 1e-3}
TS = torch.tensor([0.0, 0.4, 1.5], dtype=torch.float64)
KINDS = ("error", "stiffness")


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


def drawn_time(ts, seed=3):
    """The first number of the generator, scaled to the interval."""
    share = torch.rand(1, dtype=torch.float64, generator=generator(seed)).item()
    return (ts[0] + share * (ts[-1] - ts[0])).item()


@pytest.mark.parametrize("ts", [TS, TS.flip(0)], ids=["forward", "backward"])
@pytest.mark.parametrize(
    ("method", "kind"),
    [(m, k) for k in KINDS for m in ADAPTIVE if k == "error" or m in ("tsit5", "dopri5", "dopri8")],
)
def test_unbiased_penalty_agrees_with_its_definition(
    field, y0, reference, first_step, gradients, ts, method, kind
):
    regularizer = Local(kind=kind, weight=2.0, method=method, generator=generator())
    solution, penalty = regularizer.solve(field, y0, ts, method="dopri5", **TOLERANCES)
    t = drawn_time(ts)
    u = fastnode.solve(field, y0, ts, method="dopri5", save="dense", **TOLERANCES).evaluate(t)
    u = u.detach()
    order = ADAPTIVE[method].order
    h = first_step(field, t, u, ts[-1].item(), order, **TOLERANCES)
    _, _, norm, stiffness = reference(field, t, u, h, method, **TOLERANCES, per_sample=False)
    expected = 2 * (norm * abs(h) if kind == "error" else stiffness)
    torch.testing.assert_close(penalty, expected, rtol=1e-6, atol=0)
    found, wanted = gradients(penalty, field), gradients(expected, field)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6 * wanted.abs().max().item())


@pytest.mark.parametrize("kind", KINDS)
def test_per_sample_penalty_is_the_mean_of_those_of_the_samples(
    field, y0, reference, first_step, gradients, kind
):
    regularizer = Local(kind=kind, per_sample=True, generator=generator())
    _, penalty = regularizer.solve(field, y0, TS, **TOLERANCES)
    t = drawn_time(TS)
    u = fastnode.solve(field, y0, TS, save="dense", **TOLERANCES).evaluate(t).detach()
    terms = []
    for sample in u:
        h = first_step(field, t, sample, 1.5, 5, **TOLERANCES)
        estimates = reference(field, t, sample, h, "tsit5", **TOLERANCES, per_sample=False)
        terms.append(estimates[2] * h if kind == "error" else estimates[3])
    expected = torch.stack(terms).mean()
    torch.testing.assert_close(penalty, expected, rtol=1e-6, atol=0)
    found, wanted = gradients(penalty, field), gradients(expected, field)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6 * wanted.abs().max().item())


def penalties(regularizer, field, y0, **options):
    solution, penalty = regularizer.solve(field, y0, TS, **TOLERANCES, **options)
    return solution, penalty.item()


@pytest.mark.parametrize("engine", ["reference", "native"])
def test_biased_times_are_the_beginnings_of_accepted_steps(field, y0, engine):
    def steep(t, y):
        return 10 * field(5 * t, y)

    plain = fastnode.solve(steep, y0, TS, **TOLERANCES, save="steps")
    beginnings = plain.steps.times[:-1]
    values = []
    for t, u in zip(beginnings, plain.steps.states, strict=False):
        seen = Local(generator=generator())
        values.append(seen._step(steep, t.item(), TS[-1], u, {**TOLERANCES}).item())
    regularizer = Local("biased", generator=generator())
    draws = 40 * len(values)
    counts = [0] * len(values)
    for _ in range(draws):
        value = penalties(regularizer, steep, y0, engine=engine)[1]
        distances = [abs(value / each - 1) for each in values]
        assert min(distances) < 1e-6
        counts[distances.index(min(distances))] += 1
    # 40 on average, with a standard deviation below 6.4.
    assert len(counts) > 3 and all(10 < count < 75 for count in counts)


@pytest.mark.parametrize("mode", ["unbiased", "biased"])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("save", ["times", "steps", "dense"])
def test_the_solution_is_that_of_solve(field, y0, mode, per_sample, save):
    options = {**TOLERANCES, "per_sample": per_sample, "save": save}
    plain = fastnode.solve(field, y0, TS, **options)
    solution, _ = Local(mode, per_sample=True).solve(field, y0, TS, **options)
    torch.testing.assert_close(solution.ys, plain.ys, rtol=1e-12, atol=1e-12)
    assert solution.ts is TS
    mine, theirs = (x.steps[0] if per_sample else x.steps for x in (solution, plain))
    torch.testing.assert_close(mine.times, theirs.times)
    assert (mine.states is None) == (save == "times")
    if save == "dense":
        torch.testing.assert_close(solution.evaluate(0.7), plain.evaluate(0.7))


@pytest.mark.parametrize("mode", ["unbiased", "biased"])
def test_samples_with_times_of_their_own(field, y0, mode):
    scale = torch.tensor([1.0, -1.0, 2.0, 0.5], dtype=torch.float64)
    ts = scale[:, None] * TS
    regularizer = Local(mode, per_sample=True)
    solution, penalty = regularizer.solve(field, y0, ts, per_sample=True)
    torch.testing.assert_close(solution.ys, fastnode.solve(field, y0, ts, per_sample=True).ys)
    assert penalty > 0 and solution.ys.shape == (3, 4, 3)
    pairs, _ = regularizer.solve(
        lambda t, y: (field(t, y[0]), -y[1]), (y0, y0[:, 0]), ts, per_sample=True
    )
    torch.testing.assert_close(pairs.ys[1][-1], y0[:, 0] * torch.exp(-ts[:, -1]), rtol=1e-2, atol=0)


@pytest.mark.parametrize("mode", ["unbiased", "biased"])
def test_the_penalty_has_no_gradient_through_the_solve(field, y0, mode):
    graphs, y = [], y0.requires_grad_()

    def func(t, z):
        value = field(t, z)
        graphs.append(value.requires_grad)
        return value

    solution, penalty = Local(mode).solve(func, y, TS, **TOLERANCES)
    penalty.backward()
    assert y.grad is None
    assert len(graphs) == solution.nfe + 8
    assert sum(graphs[solution.nfe :]) == 6


@pytest.mark.parametrize("mode", ["unbiased", "biased"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_the_graph_of_the_penalty_does_not_grow_with_the_steps(field, y0, mode, per_sample):
    sizes, steps = [], []
    for tolerance in (1e-2, 1e-9):
        solution, penalty = Local(mode, per_sample=per_sample).solve(
            field, y0, TS, rtol=tolerance, atol=tolerance, per_sample=per_sample
        )
        steps.append(solution.accepted.sum() if per_sample else solution.accepted)
        seen, ahead = set(), [penalty.grad_fn]
        while ahead:
            node = ahead.pop()
            if node is not None and node not in seen:
                seen.add(node)
                ahead += [each for each, _ in node.next_functions]
        sizes.append(len(seen))
    assert steps[1] > 4 * steps[0] and sizes[0] == sizes[1]


def test_all_of_the_gradient_with_a_first_derivative_that_varies(
    field, y0, reference, first_step, gradients
):
    _, penalty = Local(hold_k1=False, generator=generator()).solve(field, y0, TS, **TOLERANCES)
    t = drawn_time(TS)
    u = fastnode.solve(field, y0, TS, save="dense", **TOLERANCES).evaluate(t).detach()
    h = first_step(field, t, u, 1.5, 5, **TOLERANCES)
    step = reference(field, t, u, h, "tsit5", **TOLERANCES, per_sample=False, held=False)
    wanted = gradients(step[2] * h, field)
    found = gradients(penalty, field)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6 * wanted.abs().max().item())


def test_fixed_steps_are_not_moved_by_the_random_time(field, y0):
    plain = fastnode.solve(field, y0, TS, method="rk4", steps=4)
    solution, penalty = Local().solve(field, y0, TS, method="rk4", steps=4)
    assert torch.equal(solution.ys, plain.ys) and penalty > 0


def test_tuple_states(field, y0):
    def func(t, state):
        return field(t, state[0]), -state[1]

    for mode in ("unbiased", "biased"):
        solution, penalty = Local(mode).solve(func, (y0, y0[0]), TS)
        assert [x.shape for x in solution.ys] == [(3, 4, 3), (3, 3)] and penalty > 0


def test_a_generator_repeats_the_penalty(field, y0):
    for mode in ("unbiased", "biased"):
        values = [
            penalties(Local(mode, generator=generator(seed)), field, y0)[1] for seed in (1, 1, 2)
        ]
        assert values[0] == values[1] != values[2]
    state = torch.random.get_rng_state()
    penalties(Local(generator=generator()), field, y0)
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_weight_follows_its_schedule(field, y0):
    values = []
    for step in (0, 5, 10):
        regularizer = Local(weight=Exponential(8.0, 2.0, 10), generator=generator())
        regularizer.step = step
        values.append(penalties(regularizer, field, y0)[1])
    assert [values[0] / x for x in values] == pytest.approx([1, 2, 4])


def test_training_with_it_lowers_the_error():
    torch.manual_seed(0)
    # At this tolerance the errors of float32 are half rounding.
    field = MLPField(2, 16, activation="tanh").double()
    with torch.no_grad():
        for layer in field.layers:
            layer.weight.mul_(3)
    y0, ts = torch.randn(32, 2, dtype=torch.float64), torch.tensor([0.0, 1.0])
    regularizer = Local("biased", hold_k1=False, generator=generator())
    optimizer = torch.optim.Adam(field.parameters(), 0.01)
    before = fastnode.solve(field, y0, ts, rtol=1e-5, atol=1e-5).nfe
    for _ in range(30):
        optimizer.zero_grad()
        _, penalty = regularizer.solve(field, y0, ts, rtol=1e-5, atol=1e-5)
        penalty.backward()
        optimizer.step()
    after = fastnode.solve(field, y0, ts, rtol=1e-5, atol=1e-5).nfe
    assert after < 0.8 * before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mode": "some"}, "mode must be one of unbiased, biased, got 'some'"),
        ({"kind": "size"}, "kind must be one of error, stiffness, got 'size'"),
        ({"weight": -1.0}, "weight must be at least 0 and finite, got -1.0"),
        ({"weight": math.inf}, "weight must be at least 0 and finite, got inf"),
        ({"method": "rk4"}, "method must have an error estimate"),
        ({"method": "bosh3", "kind": "stiffness"}, "kind='stiffness' needs one of dopri5, tsit5"),
    ],
)
def test_bad_settings_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        Local(**arguments)


@pytest.mark.parametrize(
    ("settings", "options", "words"),
    [
        ({"mode": "biased"}, {"method": "euler", "steps": 4}, "mode='biased' needs a method that"),
        ({}, {"method": "euler"}, "mode='unbiased' needs steps or step_size"),
        ({}, {"method": "scipy_solver"}, "method must be one of"),
        ({}, {"per_sample": True}, "needs Local\\(per_sample=True\\)"),
        ({}, {"events": lambda t, y: y}, "events must be None"),
        ({}, {"ts": TS[:1]}, "ts must hold at least 2 times"),
    ],
)
def test_solves_it_cannot_work_with_are_refused_before_any_work(y0, settings, options, words):
    def func(t, y):
        raise AssertionError("evaluated")

    ts = options.pop("ts", TS) if "ts" in options else TS
    with pytest.raises(ValueError, match=words):
        Local(**settings).solve(func, y0, ts, **options)


def test_biased_local_takes_the_same_step_when_fused():
    field = MLPField(3, 16, 2).double()
    y0, ts = torch.randn(20, 3).double(), torch.tensor([0.0, 0.4, 2.0]).double()
    found = []
    for func in (field, lambda t, y: field(t, y)):
        field.zero_grad()
        solution, penalty = Local("biased", generator=generator()).solve(func, y0, ts)
        (solution.ys.square().mean() + penalty).backward()
        gradients = [p.grad for p in field.parameters()]
        found.append([solution.ys.detach(), penalty.detach(), *gradients])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
