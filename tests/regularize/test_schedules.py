"""Weights over training."""

import math
import pickle

import pytest

from fastnode.regularize import Constant, Exponential, Inverse, Linear, Local


@pytest.mark.parametrize(
    ("schedule", "steps", "expected"),
    [
        (Constant(2.5), (0, 1, 10**6), (2.5, 2.5, 2.5)),
        (Exponential(2.5, 1.0, 100), (0, 50, 100, 200), (2.5, math.sqrt(2.5), 1.0, 1.0)),
        (Exponential(0.1, 5.0, 10), (0, 5, 10), (0.1, math.sqrt(0.5), 5.0)),
        (Linear(1.0, 0.0, 4), (0, 1, 4, 9), (1.0, 0.75, 0.0, 0.0)),
        (Inverse(3.0, 0.5), (0, 2, 4), (3.0, 1.5, 1.0)),
    ],
)
def test_weights_follow_their_formula(schedule, steps, expected):
    assert [schedule(step) for step in steps] == pytest.approx(expected)
    assert pickle.loads(pickle.dumps(schedule)) == schedule


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Constant(-0.1), ValueError, "weight must be at least 0 and finite, got -0.1"),
        (lambda: Exponential(0.0, 1.0, 9), ValueError, "start must be positive and finite, got 0"),
        (lambda: Exponential(1.0, 0.0, 9), ValueError, "end must be positive"),
        (lambda: Linear(1.0, -1.0, 9), ValueError, "end must be at least 0"),
        (lambda: Linear(1.0, 1.0, 0), ValueError, "steps must be an integer of at least 1, got 0"),
        (lambda: Inverse(1.0, math.nan), ValueError, "rate must be at least 0 and finite, got nan"),
        (lambda: Local(weight="1"), TypeError, "weight must be a number, got str"),
    ],
)
def test_bad_weights_are_named(make, error, words):
    with pytest.raises(error, match=words):
        make()
