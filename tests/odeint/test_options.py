from __future__ import annotations

import warnings

import pytest
import torch
import torchdiffeq

import fastnode


def state(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def grid(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


TIMES = {
    "forward": grid(0.0, 0.3, 1.0, 2.5),
    "backward": grid(2.5, 1.0, 0.3, -0.2),
    "two": grid(0.0, 1.0),
    "one": grid(0.7),
}


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
    ids=str,
)
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
def test_grid_options_agree_with_torchdiffeq(make_net, method, direction, options):
    net, y0, t = make_net(), state(2, 4), TIMES[direction]
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
    ids=str,
)
def test_adaptive_options_agree_with_torchdiffeq(make_net, options):
    net, y0, t = make_net(), state(2, 4), TIMES["forward"]
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


def test_unknown_options_are_warned_about_and_known_ones_are_not():
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
