"""STEER: where solves end."""

import pytest
import torch

from fastnode.regularize import STEER

TS = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)


def ends(b, count, ts=TS):
    regularizer = STEER(b, generator=torch.Generator().manual_seed(0))
    y0 = torch.ones(1, dtype=torch.float64)
    solutions = [regularizer.solve(lambda t, y: 0 * y + 1, y0, ts) for _ in range(count)]
    assert all(penalty == 0 for _, penalty in solutions)
    # y' = 1: the state tells where the solve ended.
    for solution, _ in solutions:
        assert torch.equal(solution.ts[:-1], ts[:-1])
        torch.testing.assert_close(solution.ys[-1] - 1, solution.ts[-1:] - ts[0])
    return torch.stack([solution.ts[-1] for solution, _ in solutions])


@pytest.mark.parametrize("ts", [TS, -TS], ids=["forward", "backward"])
def test_ends_are_uniform_around_the_given_one(ts):
    shares = (ends(0.5, 300, ts) - (ts[-1] - 0.5)).sort().values
    # Kolmogorov-Smirnov at a level of 0.001.
    distance = (shares - torch.linspace(0, 1, 300)).abs().max()
    assert distance < 1.95 / 300**0.5
    assert shares[0] > 0 and shares[-1] < 1


def test_a_generator_repeats_the_ends():
    assert torch.equal(ends(0.2, 5), ends(0.2, 5))


def test_samples_with_times_of_their_own():
    ts = torch.stack([TS, -TS, 2 * TS])
    solution, _ = STEER(0.3).solve(
        lambda t, y: 0 * y + 1, torch.zeros(3, 1, dtype=torch.float64), ts, per_sample=True
    )
    torch.testing.assert_close(solution.ys[-1, :, 0], solution.ts[:, -1])
    assert ((solution.ts - ts)[:, -1].abs() < 0.3).all()


@pytest.mark.parametrize(
    ("b", "words"),
    [
        (0.7, "b must be below the distance of the last two times, 0.6, got 0.7"),
        (0.0, "b must be positive"),
        (-1.0, "b must be positive and finite, got -1.0"),
    ],
)
def test_a_width_that_does_not_fit_is_named(b, words):
    with pytest.raises(ValueError, match=words):
        STEER(b).solve(lambda t, y: -y, torch.ones(1), TS)
