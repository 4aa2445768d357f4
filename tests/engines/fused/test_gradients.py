"""Gradients of whole solves in one call: times, local errors, second derivatives, threads."""

import pytest
import torch

import fastnode
from fastnode import extension
from fastnode.nn import MLPField
from fastnode.regularize import Global

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)
#: Steps that do not follow the state, so that differences see the same steps.
STEPS = {"options": {"first_step": 0.25, "max_step": 0.25}, "rtol": 1.0, "atol": 1.0}


def field_of(sizes, activation="tanh", time="every", dtype=torch.float64):
    torch.manual_seed(1)
    dim, *hidden = sizes
    return MLPField(dim, hidden, None, activation, time).to(dtype)


def called(field):
    """The same field for the other engines."""
    return lambda t, y: field(t, y)


def with_parameters(field, values):
    for (name, _), value in zip(list(field.named_parameters()), values, strict=True):
        _, index, kind = name.split(".")
        field.layers[int(index)]._parameters[kind] = value
    return field


def leaves(field):
    return [p.detach().clone().requires_grad_() for p in field.parameters()]


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3", "tsit5"])
def test_gradcheck_of_state_and_parameters(method):
    field = field_of([2, 4], "silu")
    y0 = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 0.3, 0.7], dtype=torch.float64)

    def solved(y, *values):
        return fastnode.odeint(with_parameters(field, values), y, t, method=method, **STEPS)

    assert torch.autograd.gradcheck(solved, (y0, *leaves(field)))


@pytest.mark.parametrize("method", ["dopri5", "dopri8"])
@pytest.mark.parametrize("backwards", [False, True])
def test_gradients_of_times_match_the_reference(method, backwards):
    field = field_of([2, 9, 5])
    y0 = torch.randn(5, 2).double()
    found = []
    for func in (field, called(field)):
        t = torch.tensor([0.2, 0.5, 0.9, 1.4], dtype=torch.float64)
        t = (-t if backwards else t).requires_grad_()
        ys = fastnode.odeint(func, y0, t, method=method, rtol=1e-8, atol=1e-8)
        ys.pow(2).sum().backward()
        found.append(t.grad)
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-9)
    # Nothing but the solution's derivative at an end moves with it.
    last = 2 * (ys[-1] * field(t[-1].detach(), ys[-1])).sum()
    torch.testing.assert_close(found[0][-1], last.detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3", "fehlberg2", "dopri8"])
@pytest.mark.parametrize("batch", [2, 37])
def test_local_errors_have_the_gradients_of_the_native_engine(method, batch):
    field = field_of([3, 16])
    y0, ts = torch.randn(batch, 3).double(), torch.tensor([0.0, 0.4, 1.0]).double()
    options = {"method": method, "rtol": 1e-3, "atol": 1e-4}
    found = []
    for func in (field, called(field)):
        y = y0.clone().requires_grad_()
        field.zero_grad()
        solution, penalty = Global(kind="error", weight=3.0).solve(func, y, ts, **options)
        (penalty + solution.ys.square().mean()).backward()
        found.append([penalty.detach(), y.grad, *(p.grad for p in field.parameters())])
        assert not solution.steps.error.requires_grad
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


def test_stiffness_as_a_penalty_is_the_native_engines():
    field = field_of([3, 16])
    y0, ts = torch.randn(4, 3).double(), torch.tensor([0.0, 1.0]).double()
    _, ours = Global(kind="stiffness").solve(field, y0, ts)
    _, theirs = Global(kind="stiffness").solve(called(field), y0, ts)
    torch.testing.assert_close(ours, theirs)
    assert ours.requires_grad


def test_embedded_step_takes_fused_fields():
    field = field_of([3, 16])
    y = torch.randn(4, 3).double()
    ours = fastnode.embedded_step(field, 0.1, y, 0.2)
    theirs = fastnode.embedded_step(called(field), 0.1, y, 0.2)
    torch.testing.assert_close(ours.error, theirs.error)
    ours.norm.backward()
    assert field.layers[0].weight.grad is not None


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "rk4"])
def test_second_derivatives_are_those_of_the_native_engine(method):
    field = field_of([2, 6])
    y0 = torch.randn(3, 2).double()
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    options = {"options": {"step_size": 0.2}} if method == "rk4" else {"rtol": 1e-5, "atol": 1e-5}
    found = []
    for func in (field, called(field)):
        y = y0.clone().requires_grad_()
        times = t.clone().requires_grad_(method != "rk4")
        field.zero_grad()
        ys = fastnode.odeint(func, y, times, method=method, **options)
        inputs = [y, *field.parameters(), *([times] if times.requires_grad else [])]
        first = torch.autograd.grad(ys.square().sum(), inputs, create_graph=True)
        sum(x.square().sum() for x in first).backward()
        second = [x.grad for x in inputs]
        found.append([*(x.detach() for x in first), *second])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)


def test_gradgradcheck():
    field = field_of([2, 3])
    y0 = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 0.5], dtype=torch.float64)

    def solved(y, *values):
        return fastnode.odeint(with_parameters(field, values), y, t, **STEPS)

    assert torch.autograd.gradgradcheck(solved, (y0, *leaves(field)))


@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_repeat_bit_for_bit(threads):
    field = field_of([16, 64, 48], "gelu", dtype=torch.float32)
    y0, t = torch.randn(300, 16), torch.tensor([0.0, 0.5, 1.0])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    runs = []
    try:
        for _ in range(4):
            y = y0.clone().requires_grad_()
            field.zero_grad()
            fastnode.odeint(field, y, t, rtol=1e-5, atol=1e-5).square().sum().backward()
            runs.append([y.grad, *(p.grad for p in field.parameters())])
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


def test_many_steps_are_kept_as_memory_grows():
    field = field_of([2, 8])
    y0 = torch.randn(70, 2).double()
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    found = []
    for func in (field, called(field)):
        y = y0.clone().requires_grad_()
        ys = fastnode.odeint(func, y, t, rtol=1e-4, atol=1e-4, options={"max_step": 0.005})
        ys[-1].sum().backward()
        found.append(y.grad)
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-10)


def test_only_wanted_gradients_are_made():
    field = field_of([2, 8]).requires_grad_(False)
    y0 = torch.randn(3, 2).double().requires_grad_()
    t = torch.tensor([0.0, 1.0]).double()
    fastnode.odeint(field, y0, t).sum().backward()
    assert y0.grad is not None and all(p.grad is None for p in field.parameters())
    field.layers[0].bias.requires_grad_()
    fastnode.odeint(field, y0.detach(), t).sum().backward()
    assert field.layers[0].bias.grad is not None and field.layers[0].weight.grad is None


def test_args_are_refused_by_name_and_solved_by_other_engines():
    field = field_of([2, 8])
    y0, t = torch.randn(3, 2).double(), torch.tensor([0.0, 1.0]).double()
    with pytest.raises(ValueError, match="knows no args"):
        fastnode.solve(field, y0, t, args=(1.0,), engine="fused")
    with pytest.raises(TypeError):
        fastnode.solve(field, y0, t, args=(1.0,))
