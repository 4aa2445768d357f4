from __future__ import annotations

import warnings

import pytest
import torch

import fastnode

T = torch.linspace(0, 1, 9, dtype=torch.float64)


def field(t, y):
    return -y


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("rk4", {"no_such_option": 1}),
        ("dopri5", {"no_such_option": 1}),
        ("implicit_adams", {"max_order": 3}),
        ("implicit_adams", {"max_iters": 1}),
    ],
)
@pytest.mark.parametrize("solve", [fastnode.odeint, fastnode.odeint_adjoint])
def test_warnings_point_at_the_callers_line(solve, method, options):
    arguments = {"adjoint_params": ()} if solve is fastnode.odeint_adjoint else {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        y0 = torch.ones(1, dtype=torch.float64)
        solve(field, y0, T, method=method, options=options, **arguments)
    assert caught and {each.filename for each in caught} == {__file__}
