"""compile_field of functions: the tensors that they read are found, trained and watched."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from selection import slow
from torch import nn

import fastnode
from fastnode import extension

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)

TIMES = torch.tensor([0.0, 0.3, 0.5], dtype=torch.float64)
GLOBAL = torch.full((3,), 0.5, dtype=torch.float64, requires_grad=True)


def tensors():
    torch.manual_seed(0)
    w = torch.randn(3, 3).double().requires_grad_()
    b = torch.randn(3).double().requires_grad_()
    return w, b, torch.randn(5, 3).double()


def agree(ours, wanted, close=1e-10):
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=close)


def found(func, y0, held, **options):
    options = {"method": "dopri5", "rtol": 1e-7, "atol": 1e-9, **options}
    y0 = y0.clone().requires_grad_()
    ys = fastnode.solve(func, y0, TIMES, **options).ys
    return [ys.detach(), *torch.autograd.grad(ys.square().sum(), [y0, *held])]


def closure():
    w, b, y0 = tensors()
    return lambda t, y: torch.tanh(y @ w + b) * torch.cos(t) + GLOBAL, (w, b, GLOBAL), y0


def nested():
    w, b, y0 = tensors()
    layer, held = nn.Linear(3, 3).double(), {"w": [w], "b": b}

    def inner(y):
        return torch.tanh(layer(y)) @ held["w"][0] + held["b"]

    return lambda t, y: inner(y), (w, b, layer.weight, layer.bias), y0


def partial():
    w, b, y0 = tensors()

    def field(w, t, y, b):
        return torch.tanh(y @ w + b)

    return functools.partial(field, w, b=b), (w, b), y0


def method():
    w, b, y0 = tensors()

    class Model:
        def __init__(self):
            self.w, self.b = w, b

        def field(self, t, y):
            return torch.tanh(y @ self.w + self.b)

    return Model().field, (w, b), y0


def differentiated():
    """Autograd inside of a function."""
    w, b, y0 = tensors()

    def field(t, y):
        with torch.enable_grad():
            y = y if y.requires_grad else y.detach().requires_grad_()
            energy = torch.cos(torch.nn.functional.linear(y, w, b)).sum()
            return torch.autograd.grad(energy, y, create_graph=True)[0]

    return field, (w, b), y0


@pytest.mark.parametrize("adjoint", ["backprop", "checkpoint"])
@pytest.mark.parametrize("make", [closure, slow(nested), partial, method, slow(differentiated)])
def test_functions_are_compiled(make, adjoint, by_code):
    func, held, y0 = make()
    compiled = fastnode.compile_field(func, y0)
    wanted = found(func, y0, held, engine="native")
    agree(found(compiled, y0, held, adjoint=adjoint), wanted)
    assert len(by_code) == 1
    assert {id(x) for x in compiled.parameters()} == {id(x) for x in held}
    # In place, as an optimiser does: without new code.
    numbers = dict(compiled._codes.numbers)
    with torch.no_grad():
        for x in held:
            x.mul_(0.9)
    agree(found(compiled, y0, held), found(func, y0, held, engine="native"))
    assert compiled._codes.numbers == numbers


def test_adjoint_params_name_what_cannot_be_found(by_code):
    w, b, y0 = tensors()
    hidden = dict.fromkeys(range(300))

    def field(t, y):
        return torch.tanh(y @ hidden[7])

    def scaled(t, y):
        return y * hidden[7]

    # A number that nobody watches would stay as it is.
    hidden_values = (torch.tensor(0.5).double(), scaled), (torch.arange(3), scaled), (w, field)
    for value, func in hidden_values:
        hidden[7] = value
        with pytest.raises(fastnode.NotCompilable, match="adjoint_params"):
            fastnode.compile_field(func, y0)
    compiled = fastnode.compile_field(field, y0, adjoint_params=[w])
    agree(found(compiled, y0, [w]), found(field, y0, [w], engine="native"))
    assert len(by_code) == 1
    with pytest.raises(TypeError, match=r"adjoint_params\[0\]"):
        fastnode.compile_field(field, y0, adjoint_params=[1.0])
    with pytest.raises(ValueError, match="go together with a function"):
        fastnode.compile_field(nn.Linear(3, 3), y0, adjoint_params=[w])


def test_copies_of_functions_read_the_same_tensors():
    w, b, y0 = tensors()

    def field(t, y):
        return torch.tanh(y @ w + b)

    compiled = fastnode.compile_field(field, y0, adjoint_params=[b])
    other = copy.deepcopy(compiled)
    assert {id(x) for x in other.parameters()} == {id(w), id(b)}
    agree(found(other, y0, [w, b]), found(compiled, y0, [w, b]))


def test_other_values_of_variables_are_noticed():
    w, _, y0 = tensors()
    factor = 2.0

    def field(t, y):
        return factor * torch.tanh(y @ w)

    compiled = fastnode.compile_field(field, y0)
    agree(found(compiled, y0, [w]), found(field, y0, [w], engine="native"))
    factor, w = -1.0, (0.5 * w).detach().requires_grad_()
    agree(found(compiled, y0, [w]), found(field, y0, [w], engine="native"))


def test_results_of_operations_get_gradients():
    w, b, y0 = tensors()
    product = w @ w

    def field(t, y):
        return torch.tanh(y @ product)

    compiled = fastnode.compile_field(field, y0)
    ours = found(compiled, y0, [w])
    product = w @ w
    agree(ours, found(field, y0, [w], engine="native"))
    # Adjoints of other engines know leaves alone, and say so.
    with pytest.raises(ValueError, match="must be a leaf"):
        found(compiled, y0, [w], adjoint="continuous")


def test_other_engines_give_gradients_of_functions():
    w, b, y0 = tensors()

    def field(t, y):
        return torch.tanh(y @ w + b)

    compiled = fastnode.compile_field(field, y0)
    for options in ({"engine": "native", "adjoint": "checkpoint"}, {"adjoint": "continuous"}):
        ours = found(compiled, y0, [w, b], **options)
        wanted = found(field, y0, [w, b], **options, adjoint_params=(w, b))
        agree(ours, wanted, 1e-9)
    ours = fastnode.odeint_adjoint(compiled, y0, TIMES)[-1].sum()
    wanted = fastnode.odeint(field, y0, TIMES)[-1].sum()
    agree(torch.autograd.grad(ours, [w, b]), torch.autograd.grad(wanted, [w, b]), 1e-5)


def test_functions_of_tuples_with_args():
    w, b, y0 = tensors()

    def field(t, state, rate):
        y, z = state
        return torch.tanh(y @ w) * rate, -z * y.square().sum(1)

    state, rate = (y0, torch.randn(5).double()), torch.tensor(0.3).double().requires_grad_()
    compiled = fastnode.compile_field(field, state, args=(rate,))
    results = []
    for func in (compiled, field):
        ys = fastnode.odeint(func, state, TIMES, args=(rate,), method="dopri5")
        loss = ys[0].square().sum() + ys[1].sum()
        results.append([*(y.detach() for y in ys), *torch.autograd.grad(loss, [w, rate])])
    agree(*results)


calls = []


def noted(t, y):
    calls.append(t)
    return -y


def changing():
    w, _, _ = tensors()

    def field(t, y):
        with torch.no_grad():
            w.mul_(0.5)
        return torch.tanh(y @ w)

    return field


def drawing(t, y):
    return y * torch.rand(3, dtype=y.dtype)


def reading():
    w = torch.tensor(0.3, dtype=torch.float64)
    return lambda t, y: y * float(w)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: noted, "changes its"),
        (changing, "changes|different results"),
        (lambda: drawing, "random numbers"),
        (reading, "value of a tensor"),
    ],
    ids=["notes", "changes a tensor", "draws", "reads a number"],
)
def test_functions_that_are_refused(make, reason):
    with pytest.raises(fastnode.NotCompilable, match=reason):
        fastnode.compile_field(make(), torch.randn(5, 3).double())
