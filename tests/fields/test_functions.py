"""Functions of generated code on vectors, against float64."""

from __future__ import annotations

import pytest
import torch
from field_checks import disagreements
from random_sums import ONE
from selection import slow
from torch import nn

import fastnode
from fastnode.fields.compile import evaluate
from fastnode.fields.pointwise import UNARY

pytestmark = pytest.mark.skipif(not fastnode.extension.AVAILABLE, reason="no C++ extension")

#: Where a function is defined, and the error allowed in units in the last place.
DOMAINS = {
    "acos": (-1, 1), "acosh": (1, 50), "asin": (-1, 1), "atanh": (-0.99, 0.99), "log": (1e-30, 50),
    "log10": (1e-3, 50), "log1p": (-0.99, 50), "log2": (1e-3, 50), "rsqrt": (1e-6, 50),
    "sqrt": (0, 50), "exp": (-80, 80), "expm1": (-20, 20), "sinh": (-20, 20), "cosh": (-20, 20),
}  # fmt: skip
SKIPPED = ("isinf", "isnan", "logical_not")


class Pointwise(nn.Module):
    def __init__(self, names):
        super().__init__()
        self.names = tuple(names)

    def forward(self, t, y):
        rows = [getattr(torch, name)(y[:, i]) for i, name in enumerate(self.names)]
        return torch.stack(rows, 1)


@pytest.mark.parametrize("batch", [slow(1), 40])
def test_functions_are_accurate_in_float32(batch):
    """An Euler step of size one from y is y + f(y): y is taken off again in float64."""
    names = [name for name in UNARY if name not in SKIPPED and hasattr(torch, name)]
    names.sort()
    field: nn.Module = Pointwise(names)
    worst: dict[str, float] = dict.fromkeys(names, 0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60 if batch == 1 else 8):
        columns = []
        for name in names:
            low, high = DOMAINS.get(name, (-9, 9))
            columns.append(low + (high - low) * torch.rand(batch, generator=generator))
        y = torch.stack(columns, 1)
        # The same field from the second time on.
        field = fastnode.compile_field(field, y)
        found = evaluate(field, y, 0.0)
        wanted = field(torch.tensor(0.0), y.double())
        spacing = torch.finfo(torch.float32).eps * wanted.abs().clamp(min=1e-30)
        errors = ((found.double() - wanted).abs() / spacing).amax(0)
        for name, error in zip(names, errors.tolist(), strict=True):
            worst[name] = max(worst[name], error)
    # Where a result passes through zero, as that of sin does, its last place is finer than the
    # argument's own rounding allows.
    assert {name: error for name, error in worst.items() if error > 4} == {}


def test_special_numbers_are_those_of_torch():
    names = ["exp", "log", "tanh", "sigmoid", "relu", "sqrt", "sign", "abs", "expm1", "log1p"]
    field = Pointwise(names)
    special = [float("inf"), -float("inf"), float("nan"), 0.0, -0.0, 1e-40, -1e-40, 1e38, -1e38]
    y = torch.tensor(special)[:, None].expand(len(special), len(names)).contiguous()
    found = evaluate(field, y, 0.0)
    wanted = field(torch.tensor(0.0), y)
    torch.testing.assert_close(found, wanted, equal_nan=True, rtol=1e-6, atol=1e-38)


class Each(nn.Module):
    """One function for each number of a sample."""

    def forward(self, t, y):
        return torch.stack([function(y[:, i]) for i, function in enumerate(ONE.values())], 1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("batch", [3, 21])
def test_functions_have_the_gradients_of_torch(batch, dtype):
    generator = torch.Generator().manual_seed(0)
    y, weight = torch.randn(2, batch, len(ONE), generator=generator)
    assert disagreements(Each(), y, weight, dtype, per_sample=False) == {}


class Odd(nn.Module):
    """What was wrong once, or nearly: constants that are joined or hold NaN, variances of one
    number, what is overwritten being infinite, integers."""

    def forward(self, t, y):
        first = torch.tensor([True, False, False, False])
        holes = torch.tensor([float("nan"), 1.0, 2.0, 3.0]).to(y.dtype)
        integers = (3 * y).long()
        best = torch.nn.functional.one_hot(y.argmax(-1), 4)
        rows = [
            y * (torch.ones_like(y) * 0.1 + torch.full_like(y, 0.7)),
            torch.where(first, y, holes),
            torch.nan_to_num(y[:, :1].var(-1, keepdim=True), 0.5) + y,
            (y / 0.0).index_put((torch.arange(len(y))[:, None], torch.arange(4)), y),
            integers * y - integers.abs(),
            best * y + (y > 0).sum(-1, keepdim=True),
        ]
        return torch.stack(rows, -1).sum(-1) + torch.stack(rows, -1)[..., 0]


@pytest.mark.filterwarnings("ignore:var")
@pytest.mark.parametrize("batch", [slow(3), 21])
def test_odd_constants_and_integers_are_those_of_torch(batch):
    y = torch.randn(batch, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, wanted = evaluate(Odd(), y, 0.0), Odd()(torch.tensor(0.0, dtype=y.dtype), y)
    torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-13)


class Enlarged(nn.Module):
    def forward(self, t, y):
        wide = torch.nn.functional.interpolate(y, scale_factor=1.5)
        return wide[:, :, : y.shape[2]] * y


@pytest.mark.slow
def test_interpolation_by_a_factor_that_is_no_whole_number():
    y, weight = torch.randn(2, 5, 2, 7, generator=torch.Generator().manual_seed(0))
    assert disagreements(Enlarged(), y, weight, torch.float64, per_sample=False) == {}
