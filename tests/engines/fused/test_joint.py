"""Whole solves of perceptrons in one call, beside the reference engine."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastnode
from fastnode import extension
from fastnode.engines.fused import request as fused_request
from fastnode.engines.fused.mlp import ACTIVATIONS
from fastnode.nn import MLPField
from fastnode.tableaus import METHODS

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)
ADAPTIVE = [name for name, tableau in METHODS.items() if tableau.error is not None]
FIXED = [name for name in METHODS if name not in ADAPTIVE]
SETS = extension.native().mlp_instruction_sets() if extension.AVAILABLE else []


def field_of(sizes, activation, time, bias, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    dim, *hidden = sizes
    field = MLPField(dim, hidden, None, activation, time, bias).to(dtype)
    if not hidden:
        field = MLPField(dim, 1, 1, activation, time, bias).to(dtype)
    return field


def called(field):
    """The same field for the other engines."""
    return lambda t, y: field(t, y)


def gradients(field, func, y0, t, upstream, **options):
    y = y0.clone().requires_grad_()
    times = t.clone().requires_grad_() if options.pop("times", False) else t
    for each in field.parameters():
        each.grad = None
    solution = fastnode.odeint(func, y, times, **options)
    (solution * upstream).sum().backward()
    found = [y.grad, *(each.grad for each in field.parameters())]
    return solution.detach(), found + ([times.grad] if times is not t else [])


architectures = st.fixed_dictionaries(
    {
        "sizes": st.lists(st.integers(1, 40), min_size=1, max_size=5),
        "activation": st.sampled_from(list(ACTIVATIONS)),
        "time": st.sampled_from(["every", "once", "none"]),
        "bias": st.booleans(),
    }
)


@given(
    architecture=architectures,
    batch=st.integers(1, 70),
    method=st.sampled_from(ADAPTIVE),
    backwards=st.booleans(),
    seed=st.integers(0, 99),
)
def test_steps_and_states_are_those_of_the_reference(architecture, batch, method, backwards, seed):
    field = field_of(**architecture, seed=seed)
    y0 = torch.randn(batch, field.dim, dtype=torch.float64)
    ts = torch.tensor([0.0, 0.13, 0.7, 1.0], dtype=torch.float64)
    if backwards:
        ts = -ts
    options = {"method": method, "rtol": 1e-4, "atol": 1e-5}
    with torch.no_grad():
        ours = fastnode.solve(field, y0, ts, engine="fused", **options)
        theirs = fastnode.solve(field, y0, ts, engine="reference", **options)
    assert (ours.accepted, ours.rejected, ours.nfe) == (
        theirs.accepted,
        theirs.rejected,
        theirs.nfe,
    )
    assert (ours.ys - theirs.ys).abs().max() <= 1e-12 * max(1, ours.accepted) * (
        1 + theirs.ys.abs().max()
    )
    # An estimate is a difference of derivatives: it has fewer digits than they.
    torch.testing.assert_close(ours.steps.times, theirs.steps.times, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ours.steps.error, theirs.steps.error, rtol=1e-4, atol=1e-8)


@given(
    architecture=architectures,
    batch=st.integers(1, 40),
    method=st.sampled_from(["dopri5", "tsit5", "bosh3", "dopri8", "fehlberg2", *FIXED]),
    perturb=st.booleans(),
    seed=st.integers(0, 99),
)
def test_gradients_are_those_of_the_native_engine(architecture, batch, method, perturb, seed):
    field = field_of(**architecture, seed=seed)
    y0 = torch.randn(batch, field.dim, dtype=torch.float64)
    t = torch.tensor([0.0, 0.13, 0.7, 1.0], dtype=torch.float64)
    options = {"step_size": 0.1, "perturb": perturb} if method in FIXED else None
    arguments = {"method": method, "rtol": 1e-4, "atol": 1e-5, "options": options}
    upstream = torch.randn(4, batch, field.dim, dtype=torch.float64)
    ours, found = gradients(field, field, y0, t, upstream, **arguments)
    theirs, expected = gradients(field, called(field), y0, t, upstream, **arguments)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("method", ["dopri5", "dopri8"])
def test_gradients_of_times(method):
    field = field_of([3, 17, 9], "tanh", "every", True)
    y0, t = torch.randn(5, 3).double(), torch.tensor([0.0, 0.4, 1.0]).double()
    upstream = torch.randn(3, 5, 3).double()
    arguments = {"method": method, "rtol": 1e-6, "atol": 1e-6, "times": True}
    found = gradients(field, field, y0, t, upstream, **arguments)[1][-1]
    expected = gradients(field, called(field), y0, t, upstream, **arguments)[1][-1]
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("batch", [1, 20])
def test_gradcheck(batch):
    field = field_of([2, 5], "silu", "every", True)
    y0 = torch.randn(batch, 2, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 0.5], dtype=torch.float64)
    names = [name for name, _ in field.named_parameters()]

    def solved(y, *parameters):
        moved = field_of([2, 5], "silu", "every", True)
        for name, value in zip(names, parameters, strict=True):
            _, index, kind = name.split(".")
            layer = moved.layers[int(index)]
            layer._parameters[kind] = value
        return fastnode.odeint(
            moved, y, t, method="dopri5", options={"first_step": 0.25, "max_step": 0.25}, rtol=1.0
        )

    values = [p.detach().clone().requires_grad_() for p in field.parameters()]
    assert torch.autograd.gradcheck(solved, (y0, *values))


@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("batch", [1, 7, 33])
def test_instruction_sets_agree(monkeypatch, instructions, batch):
    field = field_of([5, 33, 20], "gelu", "once", True)
    y0, t = torch.randn(batch, 5).double(), torch.tensor([0.0, 1.0]).double()
    upstream = torch.ones(2, batch, 5).double()
    expected = gradients(field, called(field), y0, t, upstream, rtol=1e-6, atol=1e-6)
    monkeypatch.setattr(fused_request, "INSTRUCTIONS", instructions)
    found = gradients(field, field, y0, t, upstream, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_results_repeat_bit_for_bit_on_several_threads():
    field = field_of([16, 64], "tanh", "none", True, torch.float32)
    y0, t = torch.randn(200, 16), torch.tensor([0.0, 1.0])
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        runs = [
            gradients(field, field, y0, t, torch.ones(2, 200, 16), rtol=1e-5, atol=1e-5)
            for _ in range(3)
        ]
    finally:
        torch.set_num_threads(threads)
    alone = gradients(field, field, y0, t, torch.ones(2, 200, 16), rtol=1e-5, atol=1e-5)
    for solution, found in runs:
        assert torch.equal(solution, alone[0])
        assert all(torch.equal(a, b) for a, b in zip(found, runs[0][1], strict=True))


def test_auto_takes_it_and_hooks_keep_their_meaning():
    field = field_of([2, 8], "tanh", "none", True, torch.float32)
    y0, t = torch.randn(3, 2), torch.tensor([0.0, 1.0])
    assert fastnode.odeint(field, y0, t).grad_fn.name() == "MlpSolveBackward"
    calls = []
    handle = field.register_forward_hook(lambda *_: calls.append(1))
    fastnode.odeint(field, y0, t)
    handle.remove()
    assert calls
    with pytest.raises(ValueError, match="engine 'fused' cannot run"):
        fastnode.solve(lambda t, y: -y, y0, t, engine="fused")


def test_bad_arguments_are_named_as_by_other_engines():
    field = field_of([2, 8], "tanh", "none", True, torch.float32)
    y0, t = torch.randn(3, 2), torch.tensor([0.0, 1.0])
    with pytest.raises(ValueError, match="z must have size 2"):
        fastnode.odeint(field, torch.randn(3, 4), t)
    with pytest.raises(ValueError, match="strictly increasing"):
        fastnode.odeint(field, y0, torch.tensor([0.0, 1.0, 0.5]))
    with pytest.raises(RuntimeError, match="dtype"):
        fastnode.odeint(field, y0.double(), t)
    with pytest.raises(ValueError, match="rtol"):
        fastnode.odeint(field, y0, t, rtol=-1.0)
    field.layers[0].weight.data[0, 0] = math.nan
    with pytest.raises(fastnode.NonFiniteState, match="NaN"):
        fastnode.odeint(field, y0, t)


def test_a_bad_start_is_named_with_its_time():
    field = field_of([2, 8], "tanh", "none", True)
    y0, t = torch.full((3, 2), math.inf).double(), torch.tensor([0.25, 1.0]).double()
    found = []
    for engine in ("fused", "native"):
        with pytest.raises(fastnode.NonFiniteState) as error:
            fastnode.odeint(field, y0, t, engine=engine)
        found.append(str(error.value))
    assert "0.25" in found[0] and found[0] == found[1]


def test_failures_are_those_of_the_native_engine():
    field = field_of([2, 8], "relu", "none", True)
    y0, t = torch.randn(3, 2).double(), torch.tensor([0.0, 1.0]).double()
    with pytest.raises(fastnode.MaxStepsExceeded, match="2 steps tried"):
        fastnode.odeint(field, y0, t, rtol=1e-9, atol=1e-9, options={"max_num_steps": 2})
    growing = MLPField(1, 4, 2, "relu", "none").float()
    with torch.no_grad():
        for layer in growing.layers:
            layer.weight.fill_(1.0)
    arguments = {"rtol": 1e-3, "atol": 1e-3, "options": {"max_num_steps": 200}}
    found = []
    for func in (growing, called(growing)):
        with pytest.raises(fastnode.SolverError) as error:
            fastnode.odeint(func, torch.ones(3, 1), torch.tensor([0.0, 100.0]), **arguments)
        found.append(error.value)
    assert type(found[0]) is type(found[1])
    assert found[0].time == pytest.approx(found[1].time, rel=1e-3)


def test_backward_refuses_parameters_changed_after_solve():
    field = field_of([2, 8], "tanh", "none", True)
    solution = fastnode.odeint(field, torch.randn(3, 2).double(), torch.tensor([0.0, 1.0]))
    with torch.no_grad():
        field.layers[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        solution.sum().backward()


def test_backward_twice_needs_retain_graph():
    field = field_of([2, 8], "tanh", "none", True)
    y0 = torch.randn(3, 2).double()
    loss = fastnode.odeint(field, y0, torch.tensor([0.0, 1.0])).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
