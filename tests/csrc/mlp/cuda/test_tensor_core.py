"""Layers by tensor cores: the CUDA kernels run as fibers on the CPU, with the instruction in its
description's place, against the same kernels without."""

from __future__ import annotations

import pytest
import torch
from cuda_emulation import COMPILER
from emulated_mlp import FIXED, JOINT, PER_SAMPLE, TIMES, make, run
from emulated_mlp_backward import back_through
from selection import slow

from fastnode import extension

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler"),
    pytest.mark.skipif(not extension.AVAILABLE, reason="C++ extension not built"),
]
GRID = [0.0, 0.5, 1.0, 1.5, 2.0]
SHAPES = [
    (8, 32, 2, "none"),  # whole tiles
    slow(19, (40, 21), None, "every"),  # parts of tiles on every side, a column for the time
    (3, (64, 9, 64), None, "once"),  # layers that are too narrow between others
]


def random(*shape, dtype=torch.float64, seed=1):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def solved(field, y0, kind, **options):
    if kind == FIXED:
        return run(field, y0, TIMES, "rk4", kind, grid=GRID, keep=True, **options)
    return run(field, y0, TIMES, kind=kind, rtol=1e-3, atol=1e-3, keep=True, **options)


def close(ours, theirs, tolerance):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    assert not torch.equal(ours, theirs)


@pytest.mark.parametrize("global_weights", [slow(False), True])
@pytest.mark.parametrize("kind", [JOINT, PER_SAMPLE, FIXED])
@pytest.mark.parametrize("dim, hidden, depth, time", SHAPES)
def test_solves_and_gradients_differ_by_rounding_alone(
    dim, hidden, depth, time, kind, global_weights
):
    field, y0 = make(dim, hidden, depth, time=time), random(19, dim)
    plain, ours = (
        solved(field, y0, kind, global_weights=global_weights, tensor=each)
        for each in (False, True)
    )
    assert ours.counts == plain.counts
    close(ours.ys, plain.ys, 1e-12)
    plain, ours = (
        back_through(field, y0, kind, plain, GRID, global_weights=global_weights, tensor=each)
        for each in (False, True)
    )
    close(ours.y0, plain.y0, 1e-11)
    for i, (a, b) in enumerate(zip(ours.parameters, plain.parameters, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11, msg=f"parameter {i}")


@pytest.mark.parametrize("kind", [slow(JOINT), PER_SAMPLE, slow(FIXED)])
def test_float32_stays_near_float64(kind):
    """Of three products of numbers with 11 bits; the sums are cut off, not rounded."""
    field = make(19, (40, 21), None, dtype=torch.float32)
    y0 = random(19, 19, dtype=torch.float32)
    exact = solved(field.double(), y0.double(), FIXED) if kind == FIXED else None
    field.float()
    plain, ours = (solved(field, y0, kind, tensor=each) for each in (False, True))
    close(ours.ys, plain.ys, 2e-5 if kind != FIXED else 2e-6)
    if exact is not None:
        error, usual = (float((x.ys - exact.ys).abs().max()) for x in (ours, plain))
        assert error < 5 * usual
    a, b = (back_through(field, y0, kind, plain, GRID, tensor=each) for each in (False, True))
    close(b.y0, a.y0, 1e-4)
    for x, y in zip(b.parameters, a.parameters, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


def test_results_repeat_bit_for_bit():
    field, y0 = make(8, 32, dtype=torch.float32), random(19, 8, dtype=torch.float32)
    first, second = (solved(field, y0, JOINT, tensor=True) for _ in range(2))
    assert torch.equal(first.ys, second.ys)
    a, b = (back_through(field, y0, JOINT, first, GRID, tensor=True) for _ in range(2))
    assert all(map(torch.equal, a.parameters, b.parameters))


def test_narrow_layers_are_left_to_threads():
    """Fewer rows than a tile has, or a depth below eight."""
    for dim, hidden in ((3, 7), (2, 64)):
        field, y0 = make(dim, hidden, 2), random(11, dim)
        plain, ours = (solved(field, y0, JOINT, tensor=each) for each in (False, True))
        assert torch.equal(ours.ys, plain.ys)


def test_samples_that_have_a_thread_each_are_left_to_threads():
    field, y0 = make(2, (8, 8), None), random(1100, 2)
    options = {"kind": PER_SAMPLE, "rtol": 0.1, "atol": 0.1}
    plain, ours = (run(field, y0, TIMES[:2], **options, tensor=each) for each in (False, True))
    assert ours.plan[3] == 1 and torch.equal(ours.ys, plain.ys)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_found_as_without(bad, dtype):
    field, y0 = make(8, 32, activation="relu", dtype=dtype), random(11, 8, dtype=dtype)
    with torch.no_grad():
        field.perceptron()[0][-1][0][3] = bad
    plain, ours = (solved(field, y0, JOINT, tensor=each) for each in (False, True))
    assert ours.counts == plain.counts and ours.counts[0][3] != 0
