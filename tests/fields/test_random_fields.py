"""Random fields, compiled, against the modules they were made of."""

from __future__ import annotations

import pytest
import torch
from field_checks import disagreements
from hypothesis import given, settings
from hypothesis import strategies as st
from random_fields import SHAPES, STEPS, RandomField
from selection import slow

import fastnode

pytestmark = pytest.mark.skipif(not fastnode.extension.AVAILABLE, reason="no C++ extension")

RECIPES = st.lists(
    st.tuples(st.sampled_from(list(STEPS)), st.integers(0, 9999)), min_size=2, max_size=6
)


def disagree(shape, recipe, batch, dtype, per_sample):
    field = RandomField(shape, recipe)
    generator = torch.Generator().manual_seed(len(recipe))
    y, weight = torch.randn(2, batch, *shape, generator=generator)
    # Per-sample stepping knows rows of numbers alone.
    return disagreements(field, 0.7 * y, weight, dtype, per_sample and len(shape) == 1)


@pytest.mark.slow
@settings(max_examples=max(settings.default.max_examples // 3, 1))
@given(
    shape=st.sampled_from(SHAPES),
    recipe=RECIPES,
    batch=st.sampled_from([1, 3, 21, 40]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    per_sample=st.booleans(),
)
def test_random_fields_are_the_modules(shape, recipe, batch, dtype, per_sample):
    assert disagree(shape, recipe, batch, dtype, per_sample) == {}


@pytest.mark.parametrize(
    ("shape", "names", "batch", "dtype", "per_sample"),
    [
        ((3,), "linear normal time inner cat indexed residual", 3, torch.float32, False),
        slow((2, 4, 4), "convolution one pooling view reduce product", 21, torch.float64, False),
    ],
    ids=["rows", "images"],
)
def test_a_field_of_many_parts_is_the_module(shape, names, batch, dtype, per_sample):
    recipe = [(name, i) for i, name in enumerate(names.split())]
    assert disagree(shape, recipe, batch, dtype, per_sample) == {}
