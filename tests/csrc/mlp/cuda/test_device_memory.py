"""Solves by the CUDA kernels whose weights are in device memory, run as fibers on the CPU."""

from __future__ import annotations

import pytest
import torch
from cuda_emulation import COMPILER
from emulated_mlp import FIXED, JOINT, PER_SAMPLE, TIMES, make, run
from emulated_mlp_backward import back, back_through
from selection import slow

from fastnode import extension

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler"),
    pytest.mark.skipif(not extension.AVAILABLE, reason="C++ extension not built"),
]
GRID = [0.0, 0.3, 0.6, 0.9, 1.2, 1.5, 1.8, 2.0]
NO_STEPS = {"max_num_steps": 0, "room": 1, "capacity": 1}


def random(*shape, dtype=torch.float64, seed=1):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def solved(field, y0, kind, global_weights):
    if kind == FIXED:
        return run(
            field, y0, TIMES, "rk4", kind, grid=GRID, keep=True, global_weights=global_weights
        )
    return run(
        field, y0, TIMES, kind=kind, rtol=1e-3, atol=1e-3, keep=True, global_weights=global_weights
    )


@pytest.mark.parametrize("dtype", [torch.float32, slow(torch.float64)])
@pytest.mark.parametrize("kind", [JOINT, PER_SAMPLE, FIXED])
@pytest.mark.parametrize(
    "dim, hidden, depth, time",
    [
        (1, 33, 2, "none"),  # several threads for each sum
        (5, (7, 40, 3), None, "once"),
        (70, 2, 3, "every"),  # more features than threads of a sample
        (39, 150, 2, "every"),  # several outputs for each thread
    ],
)
def test_weights_in_global_memory_match_shared_memory(dim, hidden, depth, time, kind, dtype):
    field, y0 = make(dim, hidden, depth, time=time, dtype=dtype), random(11, dim, dtype=dtype)
    in_shared, in_global = (solved(field, y0, kind, each) for each in (False, True))
    assert in_global.global_weights and in_global.plan[:5] == in_shared.plan[:5]
    assert torch.equal(in_global.ys, in_shared.ys) and in_global.counts == in_shared.counts
    for name in ("ends", "errors", "stiffness", "kept"):
        ours, theirs = getattr(in_global, name), getattr(in_shared, name)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    rates = kind == JOINT
    ours, theirs = (
        back_through(field, y0, kind, in_shared, GRID, rates=rates, global_weights=each)
        for each in (True, False)
    )
    assert ours.plan[5] == 1
    assert torch.equal(ours.y0, theirs.y0)
    assert kind != JOINT or torch.equal(ours.rates, theirs.rates)
    for a, b in zip(ours.parameters, theirs.parameters, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", [JOINT, PER_SAMPLE])
def test_weights_use_global_memory_only_when_too_large(kind):
    options = {"kind": kind, **NO_STEPS}
    assert not run(make(64, 100), random(2, 64), TIMES, **options).global_weights
    assert run(make(64, 512), random(2, 64), TIMES, **options).global_weights
    # Of half the size.
    small = make(64, 200, dtype=torch.float32), random(2, 64, dtype=torch.float32)
    assert run(make(64, 200), random(2, 64), TIMES, **options).global_weights
    assert not run(*small, TIMES, **options).global_weights


def test_samples_that_have_a_thread_each_read_weights_nearby():
    found = run(make(2, 5), random(1100, 2), TIMES[:2], kind=PER_SAMPLE, global_weights=True)
    assert found.plan[3] == 1 and not found.global_weights


def test_states_that_do_not_fit_are_refused():
    for field in (make(4000, 1), make(2, 4000)):
        for kind in (JOINT, PER_SAMPLE):
            assert run(field, random(2, field.dim), TIMES, kind=kind) is None
    # A block holds 16 samples of this field, a device of two processors 32.
    field = make(64, 512)
    assert run(field, random(32, 64), TIMES, **NO_STEPS) is not None
    assert run(field, random(33, 64), TIMES) is None
    # Derivatives of activations have to be there as well.
    field, nothing = make(2, 2000), torch.zeros(1).double()
    assert run(field, random(2, 2), TIMES, **NO_STEPS).global_weights
    assert back(field, torch.zeros(2, 2, 2).double(), [0.0, 1.0], nothing, [0.0, 1.0]) is None
