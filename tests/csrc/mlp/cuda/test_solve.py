"""Whole solves of perceptrons by the CUDA kernels, run as fibers on the CPU, against the fused
engine's solves on the CPU."""

from __future__ import annotations

import math

import pytest
import torch
from cuda_emulation import COMPILER
from emulated_mlp import FIXED, JOINT, PER_SAMPLE, TIMES, kernels, make, run

import fastnode
from fastnode import extension
from fastnode.control.controllers import Controller
from fastnode.engines.fused.mlp import ACTIVATIONS
from fastnode.nn import MLPField

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler"),
    pytest.mark.skipif(not extension.AVAILABLE, reason="C++ extension not built"),
]


def start(batch, dim=3, dtype=torch.float64):
    return torch.randn(batch, dim, dtype=dtype, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def on_cpu(field, y0, times=TIMES, method="dopri5", **options):
    options = {"rtol": 1e-5, "atol": 1e-6, "engine": "fused", **options}
    times = torch.as_tensor(times, dtype=torch.float64)
    return fastnode.solve(field, y0, times, method=method, **options)


def close(found, wanted, tolerance=1e-7):
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance, equal_nan=True)


def known_start(method, batch=None, size=0.3):
    """A first step for dopri8: the error of its own guess is rounding, which would decide on the
    size of the next step."""
    if method != "dopri8":
        return {}
    return {"first_step": size if batch is None else torch.full((batch,), size).double()}


def same_solve(found, wanted):
    """As far as rounding leaves it alone: errors of steps are differences of nearby numbers."""
    assert found.counts[0] == [wanted.accepted, wanted.rejected, wanted.nfe, 0, 0]
    close(found.ys, wanted.ys)
    close(found.steps("ends"), wanted.steps.times[1:], 1e-3)
    close(found.steps("errors"), wanted.steps.error, 1e-3)
    close(found.steps("stiffness"), wanted.steps.stiffness, 1e-3)


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "dopri8", "bosh3", "adaptive_heun"])
def test_joint_steps_are_those_of_the_cpu(method):
    field, y0, options = make(), start(11), known_start(method)
    same_solve(
        run(field, y0, TIMES, method, **options), on_cpu(field, y0, TIMES, method, **options)
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    field, y0 = make(activation=activation), start(3)
    same_solve(run(field, y0, TIMES), on_cpu(field, y0))


@pytest.mark.parametrize(
    "dim, hidden, depth, time",
    [
        (2, 1, 1, "every"),  # no layer between
        (1, 33, 2, "none"),  # several threads for each sum
        (5, (7, 40, 3), None, "once"),
        (70, 2, 3, "every"),  # more features than threads of a sample
        (40, 150, 2, "none"),  # several outputs for each thread
    ],
)
def test_shapes_of_layers(dim, hidden, depth, time):
    field, y0 = make(dim, hidden, depth, time=time), start(5, dim)
    same_solve(run(field, y0, TIMES), on_cpu(field, y0))


@pytest.mark.parametrize("batch", [1, 8, 9, 100])
def test_one_block_and_several_take_the_same_steps(batch):
    field, y0 = make(bias=False), start(batch)
    found = run(field, y0, TIMES)
    assert found.plan[2] == (1 if batch <= 8 else 2)
    same_solve(found, on_cpu(field, y0))


def test_backwards_in_time_with_a_first_step_and_a_controller():
    field, y0, times = make(), start(4), TIMES[::-1]
    control = Controller(proportional=0.4, integral=0.3, keeps_accepted=True, max_step=0.2)
    found = run(field, y0, times, first_step=0.01, controller=control)
    same_solve(found, on_cpu(field, y0, times, controller=control, first_step=0.01))


def test_joint_results_repeat_after_interruptions():
    field, y0 = make(), start(20)
    whole, again = (run(field, y0, TIMES, "tsit5", keep=True) for _ in range(2))
    pieces = run(field, y0, TIMES, "tsit5", keep=True, capacity=2)
    assert whole.launches == 1 and pieces.launches == math.ceil(whole.counts[0][0] / 2)
    for other in (again, pieces):
        assert torch.equal(other.ys, whole.ys) and other.counts == whole.counts
        for name in ("ends", "errors", "stiffness"):
            assert torch.equal(other.steps(name), whole.steps(name))
        count = whole.counts[0][0]
        assert torch.equal(other.kept[:count], whole.kept[:count])


def test_kept_states_are_those_at_which_steps_begin():
    field, y0 = make(), start(5)
    found = run(field, y0, TIMES, keep=True)
    ends = found.steps("ends").tolist()
    wanted = on_cpu(field, y0, [0.0, *ends]).ys
    with torch.no_grad():
        for t, state, derivative in zip([0.0, *ends[:-1]], wanted, found.kept[:, 1], strict=False):
            close(derivative, field(t, state), 1e-4)
    close(found.kept[: len(ends), 0], wanted[:-1], 1e-4)


def test_float32_follows_float64_to_its_precision():
    field, y0 = make(dtype=torch.float32), start(40, dtype=torch.float32)
    exact = on_cpu(field.double(), y0.double(), rtol=1e-9, atol=1e-9).ys
    field.float()
    joint = run(field, y0, TIMES, rtol=1e-5, atol=1e-5)
    apart = run(field, y0, TIMES, kind=PER_SAMPLE, rtol=1e-5, atol=1e-5)
    for found in (joint, apart):
        close(found.ys, exact.float(), 1e-4)


def test_a_start_that_is_not_finite_is_told():
    field, y0 = make(), start(10)
    y0[9, 1] = math.nan
    found = run(field, y0, TIMES)
    assert found.counts[0][:2] == [0, 0] and found.counts[0][3] != 0 and found.counts[0][4] & 1


@pytest.mark.parametrize("kind", [0, PER_SAMPLE])
def test_a_solve_that_needs_too_many_steps_stops_there(kind):
    field, y0 = make(), start(10)
    found = run(field, y0, TIMES, kind=kind, max_num_steps=2, first_step=0.01)
    for accepted, rejected, *_ in found.counts:
        assert accepted + rejected == 2
    assert found.ys[-1].isnan().all() and torch.equal(found.ys[0], y0)


@pytest.mark.parametrize("kind", [0, PER_SAMPLE])
def test_a_solve_that_overflows_ends(kind):
    field = MLPField(1, 1, 2, "relu", "none", False)
    with torch.no_grad():
        for weight, value in zip(field.parameters(), (1.0, 20.0), strict=True):
            weight.fill_(value)
    y0 = torch.ones(10, 1)
    found = run(field, y0, [0.0, 10.0], kind=kind, max_num_steps=2000, room=2000)
    for accepted, rejected, _, failure, seen in found.counts:
        assert accepted + rejected < 2000 and seen & 2
        assert kind != PER_SAMPLE or failure == 1
    assert found.ys[-1].isnan().all() and torch.equal(found.ys[0], y0)


@pytest.mark.parametrize("method", ["euler", "heun3", "rk4", "dopri5"])
@pytest.mark.parametrize("perturb", [False, True])
def test_steps_along_a_grid(method, perturb):
    field, y0 = make(), start(37)
    options = {"step_size": 0.3, "perturb": perturb}
    times = torch.tensor(TIMES, dtype=torch.float64)
    grid = [*torch.arange(0, 2.0, 0.3, dtype=torch.float64).tolist(), 2.0]
    found = run(field, y0, TIMES, method, FIXED, grid=grid, perturb=perturb, keep=True)
    if method != "dopri5":
        with torch.no_grad():
            wanted = fastnode.odeint(field, y0, times, method=method, options=options)
        # Inside a step odeint goes along a line.
        close(found.ys[[0, 3, 4]][[0, 2]], wanted[[0, 4]], 1e-12)
    assert found.ys.isfinite().all() and torch.equal(found.kept[0, 0], y0)


def per_sample_like_cpu(found, wanted):
    for b, (accepted, rejected, evaluations, failure, _) in enumerate(found.counts):
        assert (accepted, rejected) == (int(wanted.accepted[b]), int(wanted.rejected[b]))
        assert evaluations == int(wanted.nfe[b])
        names = ["finished", "NonFiniteState", "StepSizeUnderflow", "MaxStepsExceeded"]
        assert names[failure] == wanted.status[b]
        close(found.steps("ends", b), wanted.steps[b].times[1:], 1e-4)
        close(found.steps("stiffness", b), wanted.steps[b].stiffness, 1e-2)
    close(found.ys, wanted.ys)


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "dopri8", "bosh3"])
@pytest.mark.parametrize("batch", [3, 70])
def test_samples_with_steps_of_their_own(batch, method):
    field, y0, options = make(), 3 * start(batch), known_start(method, batch)
    found = run(field, y0, TIMES, method, PER_SAMPLE, **options)
    assert found.plan[3] == 0
    per_sample_like_cpu(found, on_cpu(field, y0, TIMES, method, per_sample=True, **options))


@pytest.mark.parametrize("method", ["tsit5", "dopri8"])
def test_a_thread_for_each_sample(method):
    field, y0, options = make(2, 5), 2 * start(1100, 2), known_start(method, 1100, 0.1)
    found = run(field, y0, TIMES[:3], method, PER_SAMPLE, **options)
    assert found.plan[3] == 1
    per_sample_like_cpu(found, on_cpu(field, y0, TIMES[:3], method, per_sample=True, **options))


def test_per_sample_times_tolerances_and_first_steps():
    field, y0 = make(), start(12)
    times = torch.tensor(TIMES, dtype=torch.float64) * torch.linspace(-1, 1, 12)[:, None].double()
    rtol, first = torch.logspace(-3, -7, 12).double(), torch.linspace(1e-3, 0.1, 12).double()
    options = {"rtol": rtol, "atol": rtol / 3, "first_step": first}
    found = run(field, y0, times, kind=PER_SAMPLE, **options)
    per_sample_like_cpu(found, on_cpu(field, y0, times, per_sample=True, **options))


def test_interrupted_samples_go_on_as_they_would_have():
    field, y0 = make(), start(30) * torch.linspace(0.1, 4, 30)[:, None]
    whole = run(field, y0, TIMES, kind=PER_SAMPLE)
    pieces = run(field, y0, TIMES, kind=PER_SAMPLE, capacity=3)
    assert whole.launches == 1 and pieces.launches > 1 and pieces.counts == whole.counts
    assert torch.equal(pieces.ys, whole.ys)
    for b in range(30):
        assert torch.equal(pieces.steps("ends", b), whole.steps("ends", b))


def test_samples_that_fail_leave_the_others_alone():
    field, y0 = make(activation="relu"), start(20)
    y0[3, 0], y0[7, 1] = math.nan, math.inf
    y0[11] *= 1e4
    found = run(field, y0, TIMES, kind=PER_SAMPLE, max_num_steps=40)
    wanted = on_cpu(field, y0, per_sample=True, throw=False, max_num_steps=40)
    per_sample_like_cpu(found, wanted)
    assert found.counts[3][4] & 1 and found.counts[7][4] != 0


@pytest.mark.parametrize("method", ["dopri5", "dopri8"])
def test_weights_in_device_memory(method):
    field, y0 = make(24, (200, 250), None, time="none"), start(11, 24)
    options = known_start(method)
    found = run(field, y0, TIMES, method, **options)
    assert found.global_weights
    same_solve(found, on_cpu(field, y0, TIMES, method, **options))
    options = known_start(method, 11)
    samples = run(field, y0, TIMES, method, PER_SAMPLE, **options)
    assert samples.global_weights
    per_sample_like_cpu(samples, on_cpu(field, y0, TIMES, method, per_sample=True, **options))


def test_more_samples_than_fit_on_the_chip_are_refused():
    # Two processors hold no more than 512 samples each.
    assert run(make(), start(1025), TIMES) is None
    assert run(make(), start(1024), TIMES, capacity=1, room=1, max_num_steps=0) is not None


@pytest.mark.parametrize("kind", [JOINT, PER_SAMPLE, FIXED])
def test_an_error_that_is_returned_is_not_kept(kind):
    grid = [0.0, 2.0] if kind == FIXED else ()
    for calls in (0b1, 0b10):  # the attribute of shared memory, the launch
        kernels().fail_calls(calls)
        with pytest.raises(AssertionError, match="801"):
            run(make(), torch.randn(3, 3).double(), [0.0, 2.0], kind=kind, grid=grid)
        # Or the next check of a launch, ours or torch's, would take it for its own.
        assert kernels().fail_calls(0) == 0


def test_memory_that_is_reserved_for_each_block_counts():
    # A processor has 228 KiB, of which a block may have 227.
    for kib, blocks in ((227, 1), (113, 2), (75, 3)):
        assert kernels().resident_blocks(1024 * kib) == blocks
        assert kernels().resident_blocks(1024 * kib + 16) == blocks - 1
