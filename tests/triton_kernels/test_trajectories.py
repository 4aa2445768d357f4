import os

import pytest
import torch
from selection import slow

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

import fastnode  # noqa: E402
from fastnode.triton_kernels import trajectories  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("no CUDA device; test_interpreted.py runs this file", allow_module_level=True)


#: By the numbers of Trajectories.status.
STATUS = ["finished", "NonFiniteState", "StepSizeUnderflow", "MaxStepsExceeded"]

#: Gives up where the field ends, without creeping up to it.
COARSE = fastnode.Controller(min_step=0.05)


@triton.jit
def lorenz(t, x, y, z, sigma, rho, beta):
    return sigma * (y - x), x * (rho - z) - y, x * y - beta * z


def lorenz_in_torch(t, state, sigma, rho, beta):
    x, y, z = state.unbind(1)
    return torch.stack([sigma * (y - x), x * (rho - z) - y, x * y - beta * z], dim=1)


@triton.jit
def until(t, y, end):
    """Growth up to a time from which on there is no field."""
    return (tl.where(t <= end, y, float("nan")),)


def until_in_torch(t, y, end):
    return torch.where((t <= end)[:, None], y, float("nan"))


@triton.jit
def jump(t, y):
    return (tl.where(t < 0.5, 1.0, 3.0) + 0.0 * y,)


def jump_in_torch(t, y):
    return torch.where(t < 0.5, 1.0, 3.0)[:, None].to(y)


@pytest.fixture
def start(device):
    """Start and parameters of trajectories that need different numbers of steps."""

    def make(count, dtype=torch.float64):
        generator = torch.Generator().manual_seed(0)
        y0 = 1 + torch.rand(count, 3, generator=generator, dtype=torch.float64)
        rho = torch.linspace(0, 60, count, dtype=torch.float64)
        return y0.to(device, dtype), (10.0, rho.to(device, dtype), 8 / 3)

    return make


def with_torch(y0, ts, args, **options):
    tensors = [torch.as_tensor(x, dtype=y0.dtype, device=y0.device) for x in args]
    return fastnode.solve(
        lorenz_in_torch, y0, ts.to(y0.device), args=tensors, per_sample=True, **options
    )


def assert_same(ours, theirs, tolerance=1e-10):
    for name in ("accepted", "rejected", "nfe"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    torch.testing.assert_close(ours.ys, theirs.ys, rtol=0, atol=tolerance, equal_nan=True)


# Two programs, the second of them with idle threads.
@pytest.mark.parametrize("count", [1, slow(trajectories.LANES + 5)])
def test_steps_are_those_of_per_sample_solves(count, start):
    y0, args = start(count)
    ts = torch.tensor([0.0, 0.4])
    ours = fastnode.solve_triton(lorenz, y0, ts, args, rtol=1e-5, atol=1e-6)
    assert_same(ours, with_torch(y0, ts, args, rtol=1e-5, atol=1e-6))
    assert (ours.status == 0).all()
    if count > 1:
        assert ours.rejected.any() and ours.accepted.unique().numel() > 3


@pytest.mark.parametrize(
    "times, options",
    [
        ([0.0, 0.1, 0.11, 0.2, 0.4], {}),
        slow([1.0, 0.95, 0.9], {}),
        slow([0.0, 0.05, 0.3], {"method": "dopri5", "controller": "PID"}),
        slow([0.0, 0.3], {"method": "bosh3", "first_step": 0.01}),
        slow([0.0, 0.3], {"controller": fastnode.Controller(min_step=0.02, max_step=0.03)}),
        slow([0.0, 0.3], {"controller": fastnode.Controller(keeps_accepted=True, ifactor=2.0)}),
    ],
    ids=str,
)
def test_solve_triton_matches_per_sample_solves(times, options, start):
    y0, args = start(7)
    ts = torch.tensor(times)
    ours = fastnode.solve_triton(lorenz, y0, ts, args, rtol=1e-4, atol=1e-5, **options)
    assert ours.ys.shape == (len(times), 7, 3) and torch.equal(ours.ys[0], y0)
    assert_same(ours, with_torch(y0, ts, args, rtol=1e-4, atol=1e-5, **options))


def test_single_precision_is_as_good_as_its_tolerance(start):
    y0, args = start(9)
    ts = torch.tensor([0.0, 0.1, 0.3])
    exact = with_torch(y0, ts, args, rtol=1e-10, atol=1e-10).ys
    y0, args = start(9, torch.float32)
    ours = fastnode.solve_triton(lorenz, y0, ts, args, rtol=1e-5, atol=1e-5)
    theirs = with_torch(y0, ts, args, rtol=1e-5, atol=1e-5)
    assert ours.ys.dtype == torch.float32
    error = (theirs.ys - exact).abs().max()
    assert (ours.ys - exact).abs().max() <= 2 * error
    assert (ours.accepted - theirs.accepted).abs().max() <= 1


@pytest.mark.parametrize("ends", [(0.0, 0.5), (1.0, 0.5), (-1.0, 0.0)])
def test_a_jump_at_the_end_is_seen_from_this_side(ends, device):
    y0 = torch.zeros(2, 1, dtype=torch.float64, device=device)
    ts = torch.tensor(ends)
    ours = fastnode.solve_triton(jump, y0, ts)
    theirs = fastnode.solve(jump_in_torch, y0, ts.to(device), per_sample=True)
    assert_same(ours, theirs)
    assert not ours.rejected.any()


def test_who_fails_leaves_the_others_alone(device):
    y0 = torch.ones(4, 1, dtype=torch.float64, device=device)
    y0[2] = float("nan")
    end = torch.tensor([2.0, 0.5, 2.0, 0.9], dtype=torch.float64, device=device)
    ts = torch.tensor([0.0, 0.25, 0.7, 1.0])
    ours = fastnode.solve_triton(until, y0, ts, (end,), throw=False, controller=COARSE)
    theirs = fastnode.solve(
        until_in_torch,
        y0,
        ts.to(device),
        args=(end,),
        per_sample=True,
        throw=False,
        controller=COARSE,
    )
    assert [STATUS[i] for i in ours.status] == theirs.status
    assert theirs.status == ["finished", *["NonFiniteState"] * 3]
    assert_same(ours, theirs)
    assert torch.equal(ours.ys[:, :, 0].isnan().sum(dim=0).cpu(), torch.tensor([0, 2, 4, 1]))


def test_who_fails_is_named(device):
    y0 = torch.ones(4, 1, dtype=torch.float64, device=device)
    ends = torch.tensor([2.0, 0.5, 2.0, 0.75], dtype=torch.float64, device=device)
    ts = torch.tensor([0.0, 1.0])
    with pytest.raises(fastnode.NonFiniteState, match="not finite: sample 1 at t = 0.") as caught:
        fastnode.solve_triton(until, y0, ts, (ends,), controller=COARSE)
    assert caught.value.samples == (1, 3) and 0.45 < caught.value.time <= 0.5
    with pytest.raises(fastnode.NonFiniteState, match="not finite: sample 0 at t = 0"):
        fastnode.solve_triton(until, y0 * float("inf"), ts, (ends,))


def test_steps_that_are_too_small_or_too_many_end_a_trajectory(device):
    y0 = torch.ones(1, 1, dtype=torch.float64, device=device)
    ts = torch.tensor([1.0, 2.0])
    with pytest.raises(fastnode.StepSizeUnderflow, match="sample 0 at t = 1 "):
        fastnode.solve_triton(until, y0, ts, (3.0,), first_step=1e-20)
    with pytest.raises(fastnode.MaxStepsExceeded, match="2 steps tried"):
        fastnode.solve_triton(until, y0, ts, (3.0,), max_num_steps=2, first_step=0.01)
    solution = fastnode.solve_triton(
        until, y0, ts, (3.0,), max_num_steps=2, first_step=0.01, throw=False
    )
    assert solution.status.tolist() == [3] and solution.ys[1].isnan().all()
    assert (solution.accepted + solution.rejected).tolist() == [2]


def test_one_time_costs_no_evaluation(start):
    y0, args = start(3)
    solution = fastnode.solve_triton(lorenz, y0, torch.tensor([1.0]), args)
    assert torch.equal(solution.ys, y0[None]) and not solution.nfe.any()


def test_solve_triton_takes_noncontiguous_rows(start):
    y0, (sigma, rho, beta) = start(5)
    wide = torch.stack([rho, rho], dim=1)
    ts = torch.tensor([0.0, 0.1])
    one = fastnode.solve_triton(lorenz, y0, ts, (sigma, rho, beta))
    two = fastnode.solve_triton(lorenz, y0.T.contiguous().T, ts, (sigma, wide[:, 1], beta))
    assert torch.equal(one.ys, two.ys)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"field": lorenz_in_torch}, TypeError, "field must be a function decorated with"),
        ({"y0": torch.ones(3)}, ValueError, r"y0 must have shape \[B, D\]"),
        ({"y0": torch.ones(3, 3, dtype=torch.float16)}, TypeError, "float32 or float64"),
        ({"args": 1.0}, TypeError, "args must be a tuple or a list"),
        ({"args": (1.0, torch.ones(2), 1.0)}, ValueError, r"args\[1\] must be a number or have"),
        ({"args": (1.0, "2", 1.0)}, TypeError, r"args\[1\] must be a number"),
        ({"args": (1.0, torch.ones(4), 1.0)}, TypeError, r"args\[1\] must be torch.float64 on"),
        ({"ts": torch.tensor([0.0, 0.0])}, ValueError, "strictly increasing"),
        ({"method": "dopri8"}, ValueError, "method must be one of .*tsit5"),
        ({"rtol": -1.0}, ValueError, "rtol must not be negative"),
        ({"atol": torch.ones(4)}, TypeError, "atol must be a number"),
        ({"first_step": 0.0}, ValueError, "first_step must be positive"),
        ({"max_num_steps": 0}, ValueError, "max_num_steps must be an integer from 1"),
        ({"controller": "P"}, ValueError, "controller must be one of"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)
def test_wrong_arguments_are_named(changes, error, message, device):
    right = {
        "field": lorenz,
        "y0": torch.ones(4, 3, dtype=torch.float64),
        "ts": torch.tensor([0.0, 1.0]),
        "args": (1.0, 2.0, 3.0),
    }
    given = right | changes
    given["y0"] = given["y0"].to(device)
    with pytest.raises(error, match=message):
        fastnode.solve_triton(**given)


def test_controllers_with_rules_of_their_own_are_refused(start):
    class Halving(fastnode.Controller):
        pass

    y0, args = start(2)
    with pytest.raises(ValueError, match="without rules of its own"):
        fastnode.solve_triton(lorenz, y0, torch.tensor([0.0, 1.0]), args, controller=Halving())


def test_gradients_are_refused(start):
    y0, args = start(2)
    ts = torch.tensor([0.0, 0.01])
    with pytest.raises(ValueError, match="knows no gradients"):
        fastnode.solve_triton(lorenz, y0.requires_grad_(), ts, args)
    with torch.no_grad():
        assert not fastnode.solve_triton(lorenz, y0, ts, args).ys.requires_grad
