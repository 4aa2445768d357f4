from __future__ import annotations

import math
import warnings

import pytest
import torch
import torchdiffeq
from odeint_cases import TIMES, Net, grid, state

import fastnode
from fastnode.control.options import _even_grid


def fewer_by_whole_steps(ours, theirs):
    """torchdiffeq's last step goes beyond the end, where it may be rejected; ours ends there and is
    shorter, so a rejection less (six evaluations) can be the only difference."""
    return ours <= theirs and (theirs - ours) % 6 == 0 and theirs - ours <= 12


@pytest.mark.parametrize(
    "options",
    [
        {"step_size": 0.13},
        {"step_size": 0.13, "interp": "cubic"},
        {"step_size": 0.2, "perturb": True},
        {
            "grid_constructor": lambda f, y, t: torch.linspace(
                float(t[0]), float(t[-1]), 23, dtype=t.dtype
            )
        },
    ],
)
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
def test_grid_options_agree_with_torchdiffeq(method, direction, options):
    net, y0, t = Net(), state(2, 4), TIMES[direction]
    ours = fastnode.odeint(net, y0, t, method=method, options=options)
    theirs = torchdiffeq.odeint(net, y0, t, method=method, options=options)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "options",
    [
        {"first_step": 0.01},
        {"max_step": 0.1},
        {"min_step": 0.2},
        {"safety": 0.7, "ifactor": 2.0, "dfactor": 0.5},
        {"norm": lambda x: x.abs().max()},
    ],
)
def test_adaptive_options_agree_with_torchdiffeq(options):
    net, y0, t = Net(), state(2, 4), TIMES["forward"]
    ours = fastnode.odeint(net, y0, t, rtol=1e-6, atol=1e-8, options=options)
    nfe, net.nfe = net.nfe, 0
    theirs = torchdiffeq.odeint(net, y0, t, method="dopri5", rtol=1e-6, atol=1e-8, options=options)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert fewer_by_whole_steps(nfe, net.nfe)


def test_custom_norm_of_a_tuple_state_gets_the_tuple():
    seen = []

    def norm(scaled):
        seen.append([part.shape for part in scaled])
        return max(part.abs().max() for part in scaled)

    y0 = (torch.ones(2, 3), torch.ones(4))
    fastnode.odeint(lambda t, y: (-y[0], -y[1]), y0, grid(0.0, 1.0), options={"norm": norm})
    assert seen and all(shapes == [(2, 3), (4,)] for shapes in seen)


def test_odeint_warns_of_unknown_options_only():
    with pytest.warns(UserWarning, match="'euler' ignores the unexpected options first_step, odd"):
        fastnode.odeint(
            lambda t, y: -y, state(2), TIMES["two"], method="euler",
            options={"odd": 1, "first_step": 0.1},
        )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastnode.odeint(
            lambda t, y: -y, state(2), TIMES["two"], method="euler", options={"norm": torch.norm}
        )


class Jump:
    """y' = 1 before t = 1.3, -20 y after; counts evaluations and notes accepted steps."""

    def __init__(self, direction=1):
        self.direction, self.nfe, self.ends = direction, 0, []

    def __call__(self, t, y):
        self.nfe += 1
        return torch.where(t < 1.3, torch.ones_like(y), -20 * y)

    def callback_accept_step(self, t0, y0, dt):
        self.ends.append((t0 + self.direction * dt).item())


@pytest.mark.parametrize("name", ["step_t", "jump_t"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_step_t_and_jump_t_match_torchdiffeq(direction, name):
    t = grid(0.0, 0.5, 2.0) if direction == "forward" else grid(2.0, 1.5, 1.29)
    where = grid(5.0, 1.3, -2.0, 0.7, t[0].item(), 1.9)
    results = []
    for library in (fastnode, torchdiffeq):
        jump = Jump(1 if direction == "forward" else -1)
        y = library.odeint(
            jump, state(2), t, method="dopri5", rtol=1e-6, atol=1e-6, options={name: where.clone()}
        )
        results.append(y)
        inside = [x for x in where.tolist() if t.min() < x < t.max()]
        reached = [end for x in inside for end in jump.ends if abs(end - x) < 1e-12]
        assert len(reached) >= len(inside)
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_a_known_jump_costs_no_rejected_steps():
    evaluations = []
    for options in ({}, {"step_t": grid(1.3)}, {"jump_t": grid(1.3)}):
        jump = Jump()
        y = fastnode.odeint(
            jump, torch.zeros(1).double(), grid(0.0, 2.0), rtol=1e-9, atol=1e-9, options=options
        )
        evaluations.append(jump.nfe)
        torch.testing.assert_close(y[-1].item(), 1.3 * math.exp(-14), rtol=1e-3, atol=1e-9)
    assert evaluations[2] < evaluations[1] and evaluations[2] < evaluations[0]


def test_output_times_and_prescribed_steps_do_not_mix():
    """Outputs are interpolated: only step_t and jump_t shape the steps."""
    ends = []
    for t in (grid(0.0, 2.0), grid(0.0, 0.1, 0.7, 1.3, 2.0)):
        jump = Jump()
        fastnode.odeint(jump, state(2), t, options={"jump_t": [1.3], "step_t": (0.2, 0.4)})
        ends.append(jump.ends)
    assert ends[0] == ends[1]


def test_prescribed_times_may_need_a_gradient():
    t, stop = grid(0.0, 2.0).requires_grad_(), grid(0.9).requires_grad_()
    y = fastnode.odeint(lambda t, y: -y, state(2), t, options={"step_t": stop})
    y[-1].sum().backward()
    assert t.grad.any() and stop.grad is None


@pytest.mark.parametrize("library", [fastnode, torchdiffeq])
@pytest.mark.parametrize(
    "options",
    [{"step_t": grid(0.5, 0.5)}, {"step_t": grid(0.5), "jump_t": grid(0.2, 0.5)}],
)
def test_a_time_given_twice_is_refused(library, options):
    with pytest.raises(ValueError):
        library.odeint(lambda t, y: -y, state(2), grid(0.0, 1.0), options=options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_dtype_is_taken_and_times_stay_precise(dtype):
    y0, t = torch.ones(2), grid(0.0, 1.0)
    arguments = {"rtol": 1e-5, "atol": 1e-5, "options": {"dtype": dtype}}
    ours, theirs = (
        library.odeint(lambda t, y: -y, y0, t, **arguments) for library in (fastnode, torchdiffeq)
    )
    assert ours.dtype == theirs.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert torch.equal(ours, fastnode.odeint(lambda t, y: -y, y0, t, rtol=1e-5, atol=1e-5))


def test_options_are_left_as_they_are():
    options = {"step_t": grid(1.0, 0.5), "norm": torch.norm}
    before = dict(options)
    fastnode.odeint(lambda t, y: -y, state(2), grid(0.0, 2.0), options=options)
    assert options == before and torch.equal(options["step_t"], grid(1.0, 0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_even_grid_is_the_same_with_gradients_of_its_ends(dtype):
    generator = torch.Generator().manual_seed(0)
    ends = torch.randn(300, 2, dtype=torch.float64, generator=generator)
    ends = torch.cat([ends, torch.tensor([[0.0, 0.3], [0.3, 0.0], [0.0, 1.0]]).double()])
    for t in ends.to(dtype):
        for size in (0.1, 0.01, 1 / 3, 7.0):
            numbers, tensors = _even_grid(t, size), _even_grid(t.clone().requires_grad_(), size)
            assert numbers.dtype == dtype and torch.equal(numbers, tensors.detach())
