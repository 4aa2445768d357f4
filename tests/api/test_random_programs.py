"""Random programs: what torchdiffeq solves, fastnode solves alike."""

from __future__ import annotations

import warnings

import pytest
import torch
import torchdiffeq
from hypothesis import assume, given
from hypothesis import strategies as st
from torchdiffeq._impl.odeint import SOLVERS

import fastnode
from fastnode.engines.methods import ADAPTIVE, FIXED, NAMES

#: Without the Adams methods: torchdiffeq takes every grid for an even one, fastnode does not.
METHODS = [name for name in NAMES if name in SOLVERS and "adams" not in name]
SHAPES = [(), (1,), (3,), (2, 3), (0,), (2, 0), (1, 2, 1)]

number = st.floats(-1, 1, width=32)


@st.composite
def times(draw):
    gaps = draw(st.lists(st.floats(0.05, 0.6), max_size=4))
    t = torch.tensor([draw(number), *gaps], dtype=torch.float64).cumsum(0)
    return (-t if draw(st.booleans()) else t).to(draw(st.sampled_from([torch.float32, t.dtype])))


@st.composite
def states(draw, dtype):
    def tensor():
        shape = draw(st.sampled_from(SHAPES))
        size = torch.Size(shape).numel()
        return (
            torch.tensor(draw(st.lists(number, min_size=size, max_size=size)))
            .to(dtype)
            .reshape(shape)
        )

    parts = draw(st.integers(0, 3))
    return tuple(tensor() for _ in range(parts)) if parts else tensor()


def adaptive_options(t, is_tuple):
    inside = st.lists(st.floats(-2, 3, width=32), max_size=3, unique=True)
    largest = (lambda x: max(p.abs().amax() for p in x if p.numel())) if is_tuple else torch.norm
    return st.fixed_dictionaries(
        {},
        optional={
            "first_step": st.floats(1e-3, 0.5),
            "max_step": st.floats(0.1, 0.5),
            "min_step": st.sampled_from([0.0, 0.01]),
            "safety": st.floats(0.5, 0.95),
            "ifactor": st.floats(1.5, 10),
            "dfactor": st.floats(0.1, 0.5),
            "max_num_steps": st.just(500),
            "step_t": inside.map(lambda x: torch.tensor(x, dtype=torch.float64)),
            "jump_t": inside.map(lambda x: torch.tensor(x, dtype=torch.float64) + 0.01),
            "norm": st.just(largest),
            "dtype": st.just(torch.float64),
        },
    )


def fixed_options(t):
    even = {"step_size": st.floats(0.03, 0.3)}
    grid = {
        "grid_constructor": st.just(
            lambda f, y, t: torch.cat([t[:1], t[1:].lerp(t[:-1], 0.4), t[-1:]])
        )
    }
    others = {"interp": st.sampled_from(["linear", "cubic"]), "perturb": st.booleans()}
    return st.one_of(
        st.fixed_dictionaries({}, optional=others),
        st.fixed_dictionaries(even, optional=others),
        st.fixed_dictionaries(grid if len(t) > 1 else {}, optional=others),
    )


@st.composite
def programs(draw):
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.complex128]))
    y0, t = draw(states(dtype)), draw(times())
    method = draw(st.sampled_from(METHODS))
    # torchdiffeq forgets the shape of the state where SciPy has a single time.
    assume(method != "scipy_solver" or len(t) > 1)
    options = st.just(None)
    if method in ADAPTIVE:
        options = st.none() | adaptive_options(t, isinstance(y0, tuple))
    elif method in FIXED:
        options = st.none() | fixed_options(t)
    rtol, atol = draw(st.sampled_from([1e-4, 1e-6])), 1e-6
    if isinstance(y0, tuple) and draw(st.booleans()):
        rtol, atol = (rtol,) * len(y0), torch.full((len(y0),), atol)
    return {
        "func": field,
        "y0": y0,
        "t": t,
        "rtol": rtol,
        "atol": atol,
        "method": method,
        "options": draw(options),
    }


def field(t, y):
    if isinstance(y, tuple):
        return tuple(field(t + i, part) for i, part in enumerate(y))
    turn = 1j if y.is_complex() else 1.0
    return turn * (torch.cos(3 * t) - 0.8 * y)


@given(programs())
def test_programs_that_torchdiffeq_solves_are_solved_alike(program):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            theirs = torchdiffeq.odeint(**program)
        except Exception:  # noqa: BLE001
            theirs = None
        try:
            ours = fastnode.odeint(**program)
        except (fastnode.SolverError, ValueError, TypeError):
            assert theirs is None
            return
    ours_parts, parts = (x if isinstance(x, tuple) else (x,) for x in (ours, program["y0"]))
    assert isinstance(ours, tuple) == isinstance(program["y0"], tuple)
    assert [p.shape for p in ours_parts] == [(len(program["t"]), *p.shape) for p in parts]
    assert [p.dtype for p in ours_parts] == [p.dtype for p in parts]
    if theirs is None:
        return
    if program["method"] not in ADAPTIVE:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        return
    # torchdiffeq's interpolation costs bosh3 and dopri8 digits that fastnode's keeps.
    exact = torchdiffeq.odeint(
        field,
        program["y0"],
        program["t"],
        method="rk4",
        options={"step_size": 0.02, "interp": "cubic"},
    )
    assert distance(ours, exact) <= 5e-3 + 3 * distance(theirs, exact)


def distance(x, y):
    if isinstance(x, tuple):
        return max(map(distance, x, y))
    return (x - y).abs().max().item() if x.numel() else 0.0


@given(
    level=st.floats(-0.8, 0.8),
    phase=st.floats(0.1, 3.0),
    reverse_time=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    way=st.sampled_from(
        [
            {"method": "dopri5", "rtol": 1e-6, "atol": 1e-6, "options": {"max_step": 0.3}},
            {"method": "bosh3", "rtol": 1e-6, "atol": 1e-6, "options": {"max_step": 0.3}},
            {"method": "rk4", "atol": 1e-6, "options": {"step_size": 0.05, "interp": "cubic"}},
        ]
    ),
)
def test_events_that_torchdiffeq_finds_are_found_alike(level, phase, reverse_time, dtype, way):
    start = torch.tensor(phase, dtype=dtype)
    y0 = torch.stack([start.cos(), -start.sin()])
    results = [
        library.odeint_event(
            lambda t, y: torch.stack([y[1], -y[0]]),
            y0,
            torch.tensor(0.5, dtype=dtype),
            event_fn=lambda t, y: torch.stack([y[0] - level, y[1] + 0.9]),
            reverse_time=reverse_time,
            **way,
        )
        for library in (fastnode, torchdiffeq)
    ]
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_in_the_draw(method):
    assert method in SOLVERS and method in NAMES
