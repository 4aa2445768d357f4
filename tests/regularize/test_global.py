"""Global regularisation: sums over the accepted steps, with gradients through the solve."""

import pytest
import torch

import fastnode
from fastnode.engines.methods import ADAPTIVE
from fastnode.regularize import Global

TOLERANCES = {"rtol": 1e-3, "atol": 1e-4}
TS = torch.tensor([0.0, 0.3, 2.0], dtype=torch.float64)
CASES = [
    (method, kind)
    for kind in ("error", "stiffness")
    for method in ADAPTIVE
    if kind == "error" or method in ("tsit5", "dopri5", "dopri8")
]


@pytest.mark.parametrize("engine", ["reference", "native"])
@pytest.mark.parametrize(("method", "kind"), CASES)
def test_penalty_is_the_sum_over_the_steps(field, y0, method, kind, engine):
    options = {"method": method, "engine": engine, **TOLERANCES}
    solution, penalty = Global(kind, weight=3.0).solve(field, y0, TS, **options)
    steps = solution.steps
    # Steps.stiffness has |dt| in it already.
    expected = (steps.error * steps.h if kind == "error" else steps.stiffness).sum()
    torch.testing.assert_close(penalty.detach(), 3 * expected)
    assert torch.equal(solution.ys, fastnode.solve(field, y0, TS, **options).ys)


@pytest.mark.parametrize("engine", ["reference", "native"])
@pytest.mark.parametrize("method", ["tsit5", "dopri5", "bosh3"])
def test_gradient_is_that_of_the_same_steps_in_plain_pytorch(
    field, y0, reference, gradients, method, engine
):
    solution, penalty = Global().solve(field, y0, TS, method=method, engine=engine, **TOLERANCES)
    y, expected = y0, 0.0
    for t, h in zip(solution.steps.times.tolist(), solution.steps.h.tolist(), strict=False):
        options = {"method": method, **TOLERANCES, "per_sample": False, "held": False}
        y, _, norm, _ = reference(field, t, y, h, **options)
        expected = expected + norm * h
    torch.testing.assert_close(penalty, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        gradients(penalty, field), gradients(expected, field), rtol=1e-6, atol=1e-9
    )


def test_gradcheck_with_given_steps(y0):
    def penalty(rate, y0):
        # Wide tolerances and a largest step: the same steps for every rate.
        options = {"rtol": 1.0, "atol": 1.0, "first_step": 0.25, "max_step": 0.25}
        return Global().solve(lambda t, y: -rate * torch.sin(y), y0, TS[1:], **options)[1]

    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(penalty, (rate, y0[:2].clone().requires_grad_()))


@pytest.mark.skipif(not hasattr(fastnode, "Revolve"), reason="solve has backprop alone")
@pytest.mark.parametrize("kind", ["error", "stiffness"])
@pytest.mark.parametrize("form", ["tensor", "tuple"])
def test_adjoints_that_take_steps_again_give_the_same_gradient(field, y0, gradients, kind, form):
    class Pair(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.field = field

        def forward(self, t, state):
            return self.field(t, state[0]), -state[1]

    func, start = (field, y0) if form == "tensor" else (Pair(), (y0, y0[0]))
    found = []
    for adjoint in ("backprop", "checkpoint", fastnode.Revolve(2)):
        solution, penalty = Global(kind).solve(func, start, TS, adjoint=adjoint, **TOLERANCES)
        assert solution.steps.states is None
        found.append((penalty, gradients(penalty, field)))
    for penalty, gradient in found[1:]:
        torch.testing.assert_close(penalty, found[0][0])
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-6, atol=1e-9)
    with pytest.raises(
        ValueError, match="last stage derivative is the field at the end of the step"
    ):
        Global().solve(field, y0, TS, adjoint="checkpoint", method="fehlberg2")


def test_tuple_states(field, y0):
    def func(t, state):
        return field(t, state[0]), -state[1]

    solution, penalty = Global().solve(func, (y0, y0[0]), TS, **TOLERANCES)
    steps = solution.steps
    torch.testing.assert_close(penalty.detach(), (steps.error * steps.h).sum())


@pytest.mark.parametrize(
    ("settings", "options", "words"),
    [
        ({}, {"adjoint": "continuous"}, "needs a discrete adjoint, .* got 'continuous'"),
        ({}, {"adjoint": "none"}, "needs a discrete adjoint, .* got 'none'"),
        ({}, {"method": "rk4"}, "Global needs a method that chooses its steps"),
        ({"kind": "stiffness"}, {"method": "bosh3"}, "kind='stiffness' needs one of"),
        ({}, {"per_sample": True}, "Global needs per_sample=False"),
        ({"kind": "k"}, {}, "kind must be one of error, stiffness"),
        ({"weight": -1}, {}, "weight must be at least 0"),
    ],
)
def test_what_cannot_work_is_refused(y0, settings, options, words):
    with pytest.raises(ValueError, match=words):
        Global(**settings).solve(lambda t, y: -y, y0, TS, **options)
