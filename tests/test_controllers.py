"""Controllers with rules of their own."""

from __future__ import annotations

import pytest
import torch

import fastnode
from fastnode import engines


class Halving(fastnode.Controller):
    """Doubles or halves the step, and forgets how far the error was from the tolerance."""

    def next_step(self, h, ratio, history, order):
        return self.clip(2 * h if ratio < 0.1 else h if ratio <= 1 else h / 2)

    def next_steps(self, h, ratio, history, order):
        grown = torch.where(ratio < 0.1, 2 * h, torch.where(ratio <= 1, h, h / 2))
        return grown.clamp(self.min_step, self.max_step)


def swing(t, y):
    return torch.stack([y[..., 1], -y[..., 0] * (1 + t.reshape(-1) if t.ndim else 1 + t)], dim=-1)


Y0 = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
TIMES = torch.tensor([0.0, 5.0], dtype=torch.float64)
TOLERANCES = {"rtol": 1e-7, "atol": 1e-7}


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_controller_of_the_users_own_decides_on_steps(per_sample):
    arguments = {"per_sample": per_sample, **TOLERANCES}
    solution = fastnode.solve(swing, Y0, TIMES, controller=Halving(), first_step=0.125, **arguments)
    wanted = fastnode.solve(swing, Y0, TIMES, **arguments)
    assert torch.allclose(solution.ys, wanted.ys, atol=1e-5)
    for steps in solution.steps if per_sample else [solution.steps]:
        halvings = torch.log2(steps.h[:-1] / 0.125)
        assert torch.allclose(halvings, halvings.round(), atol=1e-9)


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_fused_field_is_solved_by_the_reference_then(per_sample):
    torch.manual_seed(0)
    field = fastnode.nn.MLPField(2, 8, activation="tanh").double()
    with torch.no_grad():
        solution = fastnode.solve(
            field, Y0, TIMES, controller=Halving(), first_step=0.125, per_sample=per_sample
        )
    for steps in solution.steps if per_sample else [solution.steps]:
        halvings = torch.log2(steps.h[:-1] / 0.125)
        assert torch.allclose(halvings, halvings.round(), atol=1e-9)


@pytest.mark.parametrize("engine", ["native", "fused"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_engines_that_take_numbers_only_refuse_it(engine, per_sample):
    field = fastnode.nn.MLPField(2, 8).double()
    with torch.no_grad(), pytest.raises(ValueError, match=f"engine '{engine}' cannot run"):
        fastnode.solve(field, Y0, TIMES, controller=Halving(), engine=engine, per_sample=per_sample)


def test_the_graph_engine_refuses_them():
    with pytest.raises(ValueError, match="engine 'graph'.*Halving needs engine='reference'"):
        engines.by_own_rules("graph", Halving())
