"""The schedule of checkpoints against the fewest steps that any schedule can take again."""

from __future__ import annotations

from functools import cache

import pytest

from fastnode.adjoints.discrete.revolve import Keeper, reverse


@cache
def fewest(steps: int, free: int) -> int:
    """Steps to be taken again by the best of all schedules, all tried: the first state kept is that
    after m steps, behind which one place less is free."""
    if steps <= 1:
        return 0
    if free == 0:
        return steps * (steps - 1) // 2
    return min(m + fewest(steps - m, free - 1) + fewest(m, free) for m in range(1, steps))


class Reversal:
    """Counts what ``reverse`` asks for; a state is the number of its step."""

    def __init__(self, kept, steps, slots):
        self.pulled: list[int] = []
        self.advanced = 0
        states = {n: (n,) for n in kept}
        reverse(states, steps, slots, self.advance, self.pull)

    def advance(self, m, n, state):
        assert state == (m,) and m < n
        self.advanced += n - m
        return (n,)

    def pull(self, n, state):
        assert state == (n,)
        self.pulled.append(n)


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 41])
def test_no_schedule_takes_fewer_steps_again(steps, slots):
    reversal = Reversal([0], steps, slots)
    assert reversal.pulled == list(range(steps))[::-1]
    assert reversal.advanced == fewest(steps, slots)


@pytest.mark.parametrize("slots", [1, 2, 3, 8])
@pytest.mark.parametrize("steps", [1, 5, 16, 33])
def test_every_step_is_differentiated_once_whatever_was_kept(steps, slots):
    keeper = Keeper(slots)
    for n in range(steps):
        keeper.offer(n, lambda n=n: (n,))
    assert len(keeper.kept) <= slots and all(state == (n,) for n, state in keeper.kept.items())
    assert Reversal([0, *keeper.kept], steps, slots).pulled == list(range(steps))[::-1]


def test_with_all_states_kept_no_step_is_taken_again():
    keeper = Keeper(None)
    for n in range(9):
        keeper.offer(n, lambda n=n: (n,))
    assert Reversal([0, *keeper.kept], 9, None).advanced == 0
