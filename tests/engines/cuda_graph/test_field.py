"""What a field holds, by which a captured graph is used again or not."""

from __future__ import annotations

import functools
import gc

import pytest
import torch

from fastnode.engines.cuda_graph.field import weak_reference
from fastnode.engines.held_values import LONG, HeldValues


class Field:
    def __init__(self, **held):
        vars(self).update(held)

    def __call__(self, t, y):
        return y

    def method(self, t, y):
        return y


def closing_over(x):
    return lambda t, y: x * y


@pytest.mark.parametrize(
    "make",
    [
        lambda x: Field(rate=x),
        lambda x: Field(rates=[1.0, (2.0, x)]),
        lambda x: Field(rates={"growth": {"fast": x}}),
        lambda x: Field(inner=closing_over(x)),
        lambda x: Field(inner=Field(rate=x).method),
        lambda x: functools.partial(lambda t, y, rate: rate * y, rate=x),
        lambda x: functools.partial(lambda rate, t, y: rate * y, x),
        closing_over,
    ],
)
def test_changed_numbers_and_moved_tensors_change_the_key(make):
    assert HeldValues.of(make(2.0)).key() == HeldValues.of(make(2.0)).key()
    assert HeldValues.of(make(2.0)).key() != HeldValues.of(make(3.0)).key()
    tensor, other = torch.ones(3), torch.ones(3)
    assert HeldValues.of(make(tensor)).key() == HeldValues.of(make(tensor)).key()
    assert HeldValues.of(make(tensor)).key() != HeldValues.of(make(other)).key()
    assert list(HeldValues.of(make(tensor)).tensors.values())[-1] is tensor


def test_long_lists_are_compared_by_identity_and_length():
    long = [0.0] * (LONG + 1)
    field = Field(table=long)
    before = HeldValues.of(field).key()
    long.append(1.0)
    assert HeldValues.of(field).key() != before
    assert HeldValues.of(Field(table=list(long))).key() != HeldValues.of(field).key()


def test_a_variable_that_is_not_there_yet_is_passed_over():
    def field(t, y):
        return late * y

    assert not HeldValues.of(field).numbers
    late = 2.0
    assert list(HeldValues.of(field).numbers.values()) == [2.0]


def test_an_object_that_refers_to_itself_is_visited_once():
    field = Field(rate=2.0, table=[])
    field.table.append(field)
    field.again = field.method
    assert list(HeldValues.of(field).numbers.values()) == [2.0]


def test_fields_are_held_by_weak_references():
    forgotten = []
    for make in (lambda: closing_over(2.0), Field):
        func = make()
        reference = weak_reference(func, lambda _: forgotten.append(0))
        assert reference() is func
        del func
        gc.collect()
        assert reference() is None
    owner = Field()
    assert weak_reference(owner.method, forgotten.append)() == owner.method
    assert len(forgotten) == 2


def test_a_field_that_cannot_be_referred_to_weakly_is_kept():
    class Slotted:
        __slots__ = ()

        def __call__(self, t, y):
            return y

    func = Slotted()
    assert weak_reference(func, print)() is func
