"""What a solve held is free when its results are: no tensor waits for the garbage collector, or for
ever."""

from __future__ import annotations

import gc

import pytest
import torch
from adjoint_cases import times

import fastnode

ADJOINTS = ["backprop", "checkpoint", fastnode.Revolve(2), "reversible", "continuous", "none"]
#: Operations of which autograd saves the result.
SAVING = [torch.tanh, torch.relu, torch.sigmoid, torch.exp]


@pytest.fixture(autouse=True, scope="module")
def earlier_objects_are_no_garbage():
    """Those of modules that were imported: each look at all objects would take their time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Saving(torch.nn.Module):
    def __init__(self, activation=torch.tanh):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = torch.nn.Linear(2, 8), torch.nn.Linear(8, 2)
        self.activation = activation

    def forward(self, t, y):
        return self.activation(self.outer(self.activation(self.inner(y))))


def alive():
    return sum(type(x) in (torch.Tensor, torch.nn.Parameter) for x in gc.get_objects())


def solve_once(field, adjoint, count=4, backward=True, **options):
    y0 = torch.linspace(-1, 1, 2 * count).reshape(count, 2).requires_grad_()
    if adjoint == "odeint_adjoint":
        ys = fastnode.odeint_adjoint(field, y0, times(0, 1), rtol=1e-3, atol=1e-3, **options)
    else:
        found = fastnode.solve(field, y0, times(0, 0.4, 1), adjoint=adjoint, **options)
        ys = found.ys
        if options.get("save") == "dense":
            ys = found.evaluate(times(0.3, 0.9))
    if backward and ys.requires_grad:
        ys.square().sum().backward()
    field.zero_grad()


def grown(field, adjoint, **options):
    """By how many tensors three solves are more than one."""
    solve_once(field, adjoint, **options)
    gc.collect()
    gc.disable()
    try:
        before = alive()
        for _ in range(3):
            solve_once(field, adjoint, **options)
        return alive() - before
    finally:
        gc.enable()


@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize("activation", SAVING)
def test_checkpoint_frees_fields_that_save_their_output(activation, backward):
    assert grown(Saving(activation), "checkpoint", backward=backward) == 0


@pytest.mark.parametrize("engine", ["native", "reference"])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_every_adjoint_frees(adjoint, engine):
    assert grown(Saving(), adjoint, engine=engine) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"per_sample": True},
        {"save": "dense"},
        {"save": "dense", "per_sample": True},
        {"method": "rk4", "steps": 3},
        {"events": lambda t, y: y[0, 0] - 10},
    ],
)
@pytest.mark.parametrize("adjoint", ["backprop", "checkpoint"])
def test_every_kind_of_solve_frees(adjoint, options):
    assert grown(Saving(), adjoint, **options) == 0


@pytest.mark.parametrize(
    "norm", [None, "seminorm", lambda parts: max(x.abs().max() for x in parts)]
)
def test_odeint_adjoint_frees(norm):
    options = {} if norm is None else {"adjoint_options": {"norm": norm}}
    assert grown(Saving(), "odeint_adjoint", **options) == 0


@pytest.mark.parametrize("adjoint", ["backprop", "checkpoint"])
def test_fused_solves_free(adjoint):
    field = fastnode.nn.MLPField(2, 8, 2)
    assert grown(field, adjoint) == 0
    assert grown(field, adjoint, per_sample=True) == 0


def resident():
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", [*ADJOINTS, "odeint_adjoint"], ids=str)
def test_memory_stays_flat_at_a_large_batch(adjoint):
    field = Saving()

    def run(solves):
        for _ in range(solves):
            solve_once(field, adjoint, 8192)
        gc.collect()
        return resident()

    run(20)
    before = run(20)
    # A tensor of the size of the state for each solve would be 2.6 MB, one of a layer 10 MB.
    assert run(40) - before < 2**21


SOLVES = [
    *((engine, adjoint) for engine in ("reference", "native") for adjoint in ADJOINTS),
    *(("fused", adjoint) for adjoint in ("backprop", "checkpoint", fastnode.Revolve(2), "none")),
    ("native", "odeint_adjoint"),
    ("fused", "odeint_adjoint"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "adjoint"), SOLVES, ids=str)
def test_memory_stays_flat_over_many_solves(engine, adjoint):
    field = fastnode.nn.MLPField(2, 8, 2) if engine == "fused" else Saving()
    options = {"method": "bosh3", "rtol": 1.0, "atol": 1.0}
    if adjoint == "odeint_adjoint":
        options["options"] = {"first_step": 1.0}
    else:
        options.update(engine=engine, first_step=1.0)

    def run(solves):
        for _ in range(solves):
            y0 = torch.ones(2048, 2, requires_grad=True)
            if adjoint == "odeint_adjoint":
                ys = fastnode.odeint_adjoint(field, y0, times(0, 1), **options)
            else:
                ys = fastnode.solve(field, y0, times(0, 1), adjoint=adjoint, **options).ys
            if ys.requires_grad:
                ys.sum().backward()
            field.zero_grad()
        gc.collect()
        return resident()

    run(40)
    before = run(40)
    # A state that stays for each solve would be 3.3 MB.
    assert run(200) - before < 2**21
