"""What a controller does with errors, and controllers with rules of their own."""

from __future__ import annotations

import math

import pytest
import torch

import fastnode
from fastnode import extension
from fastnode.control.controllers import CONTROLLERS
from fastnode.control.request import SolveRequest
from fastnode.engines import select
from fastnode.problem.ivp import make_problem


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


def next_h(controller, h, ratio, history, order):
    """Of one step, which that of a batch of such steps agrees with."""
    alone = controller.next_step(h, ratio, history, order)
    h, ratio, *history = torch.tensor([[h, ratio, *history]] * 2, dtype=torch.float64).unbind(1)
    assert controller.next_steps(h, ratio, history, order).tolist() == pytest.approx([alone] * 2)
    return alone


@pytest.mark.parametrize("name", CONTROLLERS)
def test_controller_gains_act_on_three_errors(name):
    controller = CONTROLLERS[name]
    p, i, d = controller.proportional, controller.integral, controller.derivative
    ratio, before, earlier, order = 0.7, 0.4, 0.9, 5
    powers = ratio**i * (ratio / before) ** p * (ratio * earlier / before**2) ** d
    wanted = 0.1 * 0.9 * powers ** (-1 / order)
    assert next_h(controller, 0.1, ratio, (before, earlier), order) == pytest.approx(wanted)


def test_controller_bounds_the_memory_of_a_tiny_error():
    controller = CONTROLLERS["PID"]
    small = next_h(controller, 0.1, 0.5, (1e-4, 1e-4), 5)
    assert next_h(controller, 0.1, 0.5, (0.0, 1e-30), 5) == small


@pytest.mark.parametrize("name", CONTROLLERS)
def test_controller_shrinks_most_after_a_nonfinite_result(name):
    for ratio in (math.inf, math.nan):
        assert next_h(CONTROLLERS[name], 0.1, ratio, (1.0, 1.0), 5) == pytest.approx(0.02)


def test_the_smallest_step_is_kept_if_it_is_finite():
    controller = fastnode.Controller(min_step=0.1)
    ratios = [0.5, 5.0, math.inf, math.nan]
    for h, wanted in ((0.1, [True, True, False, False]), (0.2, [True, False, False, False])):
        assert [controller.accepts(h, ratio) for ratio in ratios] == wanted
        steps = torch.full((4,), h, dtype=torch.float64)
        assert controller.accepted(steps, torch.tensor(ratios)).tolist() == wanted


@pytest.mark.parametrize(
    "engine", ["reference", "native"] if extension.AVAILABLE else ["reference"]
)
def test_nan_at_the_smallest_step_ends_the_solve(engine):
    controller = fastnode.Controller(min_step=0.25)
    with pytest.raises(fastnode.NonFiniteState):
        fastnode.solve(
            lambda t, y: torch.where(t > 2, math.nan, 1.0) * y,
            Y0,
            TIMES,
            controller=controller,
            engine=engine,
        )


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


def test_graph_engine_refuses_controllers_with_own_rules():
    problem = make_problem(lambda t, y: -y, Y0, TIMES)
    request = SolveRequest("dopri5", engine="graph", controller=Halving())
    with pytest.raises(ValueError, match="engine 'graph'.*Halving needs engine='reference'"):
        select.make_stepper(problem, request)
