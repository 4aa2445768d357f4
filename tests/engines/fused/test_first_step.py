"""The step of local regularisation by the fused engine: the same as by torch."""

import pytest
import torch
from selection import slow
from torch import nn

import fastnode
from fastnode import extension
from fastnode.engines.fused import first_step
from fastnode.nn import MLPField
from fastnode.regularize import Local

pytestmark = pytest.mark.skipif(not extension.AVAILABLE, reason=extension.REASON)
TS = torch.tensor([0.0, 2.0])


def field_and_state(dtype=torch.float64, batch=33):
    torch.manual_seed(4)
    field = MLPField(5, 17, depth=3, activation="tanh", time="every").to(dtype)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.mul_(4)
    return field, torch.randn(batch, 5, dtype=dtype)


# At common tolerances the error of the first step is small enough to be mostly rounding.
def penalty(field, y0, engine, ts=TS, **options):
    regularizer = Local(generator=torch.Generator().manual_seed(0), **options)
    return regularizer.solve(field, y0, ts, rtol=0.3, atol=0.3, engine=engine)[1]


@pytest.fixture
def taken(monkeypatch):
    """How often the fused engine took a step."""
    calls = []
    found = first_step._Error.forward

    def forward(*arguments):
        calls.append(1)
        return found(*arguments)

    monkeypatch.setattr(first_step._Error, "forward", staticmethod(forward))
    return calls


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("hold_k1", [True, False])
@pytest.mark.parametrize("mode", ["unbiased", "biased"])
@pytest.mark.parametrize(
    ("dtype", "method", "close"),
    [
        (torch.float64, "tsit5", 1e-6),
        (torch.float64, "dopri8", 1e-5),
        (torch.float32, "bosh3", 3e-2),
    ],
)
def test_value_and_gradient_are_those_of_the_native_engine(
    taken, dtype, method, close, mode, hold_k1, backwards
):
    field, y0 = field_and_state(dtype)
    results = []
    ts = TS.flip(0) if backwards else TS
    for engine in ("fused", "native"):
        value = penalty(field, y0, engine, ts, mode=mode, method=method, hold_k1=hold_k1)
        results.append((value, torch.autograd.grad(value, list(field.parameters()))))
    assert len(taken) == 1
    (found, gradients), (wanted, expected) = results
    torch.testing.assert_close(found, wanted, rtol=close, atol=0)
    if dtype == torch.float32:
        # Of the small ones nothing is left beside the rounding of the stages.
        ours, theirs = (torch.cat([x.flatten() for x in each]) for each in (gradients, expected))
        assert (ours - theirs).norm() < 0.1 * theirs.norm()
        return
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=close, atol=close * b.abs().max().item())


@pytest.mark.parametrize("hold_k1", [True, False])
def test_second_derivatives(taken, hold_k1):
    field, y0 = field_and_state(batch=3)
    parameters, results = list(field.parameters()), []
    for engine in ("fused", "native"):
        value = penalty(field, y0, engine, hold_k1=hold_k1)
        first = torch.autograd.grad(value, parameters, create_graph=True)
        norm = sum(x.square().sum() for x in first)
        assert isinstance(norm, torch.Tensor)
        results.append(torch.autograd.grad(norm, parameters))
    assert len(taken) == 1
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9 * wanted.abs().max().item())


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(5), nn.Linear(5, 17), nn.Linear(17, 5)
        self.register_buffer("scale", torch.rand(5))

    def forward(self, t, y):
        return self.b(torch.tanh(self.a(self.norm(y)))) * self.scale * torch.cos(t) - y


@pytest.mark.parametrize("batch", [slow(1), 33])
@pytest.mark.parametrize("hold_k1", [True, False])
def test_a_compiled_field_and_its_derivatives(taken, hold_k1, batch):
    torch.manual_seed(4)
    field, y0 = Gated().double(), torch.randn(batch, 5, dtype=torch.float64)
    compiled = fastnode.compile_field(field, y0)
    parameters, results = list(field.parameters()), []
    for func, engine in ((compiled, "fused"), (field, "native")):
        value = penalty(func, y0, engine, hold_k1=hold_k1)
        plain = torch.autograd.grad(value, parameters, retain_graph=True)
        first = torch.autograd.grad(value, parameters, create_graph=True)
        norm = sum(x.square().sum() for x in first)
        assert isinstance(norm, torch.Tensor)
        second = torch.autograd.grad(norm, parameters)
        results.append([value.detach(), *plain, *(x.detach() for x in first), *second])
    assert len(taken) == 1
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7 * wanted.abs().max().item())


def test_frozen_parameters_have_no_gradient():
    field, y0 = field_and_state()
    for parameter in field.parameters():
        parameter.requires_grad_(parameter.dim() == 1)
    penalty(field, y0, "fused").backward()
    assert [x.grad is not None for x in field.parameters()] == [
        x.dim() == 1 for x in field.parameters()
    ]


def test_without_gradients_there_is_a_value():
    field, y0 = field_and_state()
    with torch.no_grad():
        assert penalty(field, y0, "fused").item() == pytest.approx(
            penalty(field, y0, "native").item(), rel=1e-9
        )


def test_a_state_that_is_not_finite_is_refused_as_elsewhere():
    field, y0 = field_and_state()
    messages = []
    for engine in ("fused", "native"):
        with pytest.raises(fastnode.SolverError) as found:
            penalty(field, torch.full_like(y0, float("nan")), engine)
        messages.append(str(found.value))
    assert messages[0] == messages[1]
