from __future__ import annotations

import warnings

import pytest
import torch
import torchdiffeq

import fastnode

LIBRARIES = [fastnode, torchdiffeq]


class Field(torch.nn.Module):
    """Writes down what its callbacks are told: (name, t0, y0, dt)."""

    def __init__(self, names):
        super().__init__()
        self.log = []
        for name in names:
            setattr(self, f"callback_{name}", self._note(name))

    def _note(self, name):
        return lambda t0, y0, dt: self.log.append((name, t0, y0, dt))

    def forward(self, t, y):
        if isinstance(y, tuple):
            return tuple(self(t, part) for part in y)
        return -20 * (y - torch.cos(t))


def solve(library, field, t, method="dopri5", y0=None, **kwargs):
    y0 = torch.ones(2, dtype=torch.float64) if y0 is None else y0
    library.odeint(field, y0, torch.tensor(t), method=method, rtol=1e-4, atol=1e-4, **kwargs)
    return field.log


@pytest.mark.parametrize("t", [[0.0, 1.0, 3.0], [1.0, 0.5, 0.2]], ids=str)
def test_adaptive_callbacks_match_torchdiffeq(t):
    options = {"first_step": 0.5}
    ours, theirs = (
        solve(library, Field(["step", "accept_step", "reject_step"]), t, options=options)
        for library in LIBRARIES
    )
    kinds = [entry[0] for entry in ours]
    assert kinds.count("reject_step") > 1 and kinds.count("accept_step") > 5
    last = kinds.index("step", len(kinds) - 3)
    for (name, *mine), (their_name, *other) in zip(ours[:last], theirs[:last], strict=True):
        assert name == their_name
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)
        assert [x.dtype for x in mine] == [x.dtype for x in other] == [torch.float64] * 3
    assert all(dt > 0 for *_, dt in ours)


@pytest.mark.parametrize("t", [[0.0, 0.1, 0.15], [0.15, 0.1, 0.0]], ids=str)
@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
def test_fixed_methods_call_as_torchdiffeq_does(method, t):
    ours, theirs = (solve(library, Field(["step"]), t, method) for library in LIBRARIES)
    assert len(ours) == len(theirs) == 2
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine[1:], other[1:])


@pytest.mark.parametrize("library", LIBRARIES)
def test_states_come_in_the_form_of_the_caller(library):
    y0 = (torch.ones(2, 3), torch.ones(()))
    log = solve(library, Field(["step"]), [0.0, 1.0], y0=y0)
    assert all([part.shape for part in y] == [(2, 3), ()] for _, _, y, _ in log)


@pytest.mark.parametrize("library", LIBRARIES)
def test_unsupported_callbacks_are_named_in_a_warning(library):
    field = Field(["step", "accept_step", "reject_step"])
    with pytest.warns(UserWarning, match="rk4.*callback_accept_step|rk4.*callback_reject_step"):
        log = solve(library, field, [0.0, 0.1], method="rk4")
    assert [entry[0] for entry in log] == ["step"]


def test_supported_callbacks_give_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(fastnode, Field(["step", "accept_step", "reject_step"]), [0.0, 1.0])
        solve(fastnode, Field(["step", "step_adjoint"]), [0.0, 0.1], method="euler")


def test_exceptions_of_a_callback_arrive_unchanged():
    class Odd(Exception):
        pass

    class Stopping(Field):
        def callback_accept_step(self, t0, y0, dt):
            raise Odd

    with pytest.raises(Odd):
        solve(fastnode, Stopping([]), [0.0, 1.0])


def test_a_callback_must_be_callable():
    field = Field([])
    field.callback_step = 3
    with pytest.raises(TypeError, match="func.callback_step must be callable, got int"):
        solve(fastnode, field, [0.0, 1.0])


def test_times_that_need_a_gradient_do_no_harm():
    field = Field(["step", "accept_step"])
    t = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    y = fastnode.odeint(field, torch.ones(1, dtype=torch.float64), t, rtol=1e-4, atol=1e-4)
    y[-1].backward()
    assert t.grad.any() and field.log
