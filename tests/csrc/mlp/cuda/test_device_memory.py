"""Solves by the CUDA kernels whose weights are in device memory, run as fibers on the CPU."""

from __future__ import annotations

import pytest
import torch
from cuda_emulation import COMPILER
from emulated_mlp import BY_SAMPLE, FIXED, JOINT, TIMES, make, run
from emulated_mlp_backward import back, back_through

from fastnode import extension

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler"),
    pytest.mark.skipif(not extension.AVAILABLE, reason="C++ extension not built"),
]
GRID = [0.0, 0.3, 0.6, 0.9, 1.2, 1.5, 1.8, 2.0]
NO_STEPS = {"max_num_steps": 0, "room": 1, "capacity": 1}


def random(*shape, dtype=torch.float64, seed=1):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def solved(field, y0, kind, far):
    if kind == FIXED:
        return run(field, y0, TIMES, "rk4", kind, grid=GRID, keep=True, far=far)
    return run(field, y0, TIMES, kind=kind, rtol=1e-3, atol=1e-3, keep=True, far=far)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [JOINT, BY_SAMPLE, FIXED])
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
    near, far = (solved(field, y0, kind, each) for each in (False, True))
    assert far.far and far.plan[:5] == near.plan[:5]
    assert torch.equal(far.ys, near.ys) and far.counts == near.counts
    for name in ("ends", "errors", "stiffness", "kept"):
        ours, theirs = getattr(far, name), getattr(near, name)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    rates = kind == JOINT
    ours, theirs = (
        back_through(field, y0, kind, near, GRID, rates=rates, far=each) for each in (True, False)
    )
    assert ours.plan[5] == 1
    assert torch.equal(ours.y0, theirs.y0)
    assert kind != JOINT or torch.equal(ours.rates, theirs.rates)
    for a, b in zip(ours.parameters, theirs.parameters, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", [JOINT, BY_SAMPLE])
def test_weights_use_global_memory_only_when_too_large(kind):
    options = {"kind": kind, **NO_STEPS}
    assert not run(make(64, 100), random(2, 64), TIMES, **options).far
    assert run(make(64, 512), random(2, 64), TIMES, **options).far
    # Of half the size.
    small = make(64, 200, dtype=torch.float32), random(2, 64, dtype=torch.float32)
    assert run(make(64, 200), random(2, 64), TIMES, **options).far
    assert not run(*small, TIMES, **options).far


def test_samples_that_have_a_thread_each_read_weights_nearby():
    found = run(make(2, 5), random(1100, 2), TIMES[:2], kind=BY_SAMPLE, far=True)
    assert found.plan[3] == 1 and not found.far


def test_states_that_do_not_fit_are_refused():
    for field in (make(4000, 1), make(2, 4000)):
        for kind in (JOINT, BY_SAMPLE):
            assert run(field, random(2, field.dim), TIMES, kind=kind) is None
    # A block holds 16 samples of this field, a device of two processors 32.
    field = make(64, 512)
    assert run(field, random(32, 64), TIMES, **NO_STEPS) is not None
    assert run(field, random(33, 64), TIMES) is None
    # Derivatives of activations have to be there as well.
    field, nothing = make(2, 2000), torch.zeros(1).double()
    assert run(field, random(2, 2), TIMES, **NO_STEPS).far
    assert back(field, torch.zeros(2, 2, 2).double(), [0.0, 1.0], nothing, [0.0, 1.0]) is None
