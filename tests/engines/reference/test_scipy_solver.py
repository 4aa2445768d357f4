from __future__ import annotations

import sys

import pytest
import torch
import torchdiffeq

import fastnode

SOLVERS = ["RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA"]


def field(t, y):
    return -y * torch.cos(t) + 0.1 * y.flip(-1)


def start(dtype=torch.float64):
    return torch.tensor([[1.0, -0.5], [0.2, 0.3]], dtype=dtype)


TIMES = torch.tensor([0.0, 0.4, 2.0], dtype=torch.float64)


def solve(y0=None, t=TIMES, func=field, **options):
    y0 = start() if y0 is None else y0
    return fastnode.odeint(func, y0, t, method="scipy_solver", options=options, rtol=1e-6)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_of_scipy_in_both_directions(solver, backward):
    t = TIMES.flip(0) if backward else TIMES
    wanted = fastnode.odeint(field, start(), t, method="dopri8")
    assert (solve(t=t, solver=solver) - wanted).abs().max() < 2e-4


def test_the_default_solver_is_torchdiffeqs():
    theirs = torchdiffeq.odeint(field, start(), TIMES, method="scipy_solver", rtol=1e-6)
    assert (solve() - theirs).abs().max() < 1e-5
    torch.testing.assert_close(solve(), solve(solver="LSODA"), rtol=0, atol=0)


def test_a_solver_class_is_taken():
    integrate = pytest.importorskip("scipy.integrate")
    torch.testing.assert_close(solve(solver=integrate.RK45), solve(solver="RK45"))


def test_no_gradients_and_the_states_own_dtype():
    y0 = start(torch.float32).requires_grad_()
    y = solve(y0)
    assert y.dtype == torch.float32 and not y.requires_grad and y.shape == (3, 2, 2)


def test_steps_are_limited():
    def count(**options):
        seen = []

        def counted(t, y):
            seen.append(t.item())
            return field(t, y)

        solve(func=counted, solver="RK45", **options)
        return len(seen)

    assert count(max_step=0.01) > 5 * count()


def test_tuples_with_tolerances_of_their_own():
    pair = (start(), torch.ones(3, dtype=torch.float64))
    first, second = fastnode.odeint(
        lambda t, y: (field(t, y[0]), -y[1]),
        pair,
        TIMES,
        method="scipy_solver",
        rtol=(1e-6, 1e-9),
        atol=(1e-8, torch.full((3,), 1e-10, dtype=torch.float64)),
    )
    assert first.shape == (3, 2, 2) and (second[-1] - torch.exp(TIMES[-1] * -1)).abs().max() < 1e-7


def test_a_single_time_is_the_initial_state():
    torch.testing.assert_close(solve(t=TIMES[:1]), start()[None])


class TestErrors:
    def test_an_unknown_solver(self):
        with pytest.raises(ValueError, match="solver must be one of RK45.*'RK99'"):
            solve(solver="RK99")

    def test_a_complex_state(self):
        with pytest.raises(TypeError, match="y0 must be real.*complex128"):
            solve(start().to(torch.complex128))

    def test_scipy_is_missing(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "scipy", None)
        with pytest.raises(ValueError, match="scipy_solver' needs SciPy"):
            solve()

    def test_scipy_gives_up(self):
        with pytest.raises(fastnode.SolverError, match="SciPy stopped after t = ") as caught:
            solve(func=lambda t, y: y * y + 1, solver="RK45")
        assert 0 <= caught.value.time < 2

    def test_exceptions_of_the_field_arrive_unchanged(self):
        class Odd(Exception):
            pass

        def raising(t, y):
            raise Odd

        with pytest.raises(Odd):
            solve(func=raising)
