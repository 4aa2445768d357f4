from __future__ import annotations

import builtins
import math

import pytest
import torch

import fastnode


def swing(t, y):
    """y' = y cos t, solved by y0 exp(sin t - sin t0), for a state or for rows of states."""
    return y * torch.cos(t).reshape(-1, *[1] * (y.dim() - 1) if t.dim() else ())


def solution(t, t0=0.0):
    return torch.exp(torch.sin(t) - math.sin(t0))


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


def rows(count):
    return torch.ones(count, 1, dtype=torch.float64)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize(("method", "order"), [("tsit5", 5), ("dopri5", 5), ("rk4", 4)])
def test_dense_output_has_the_order_of_the_method(method, order, per_sample):
    if method == "rk4" and per_sample:
        pytest.skip("fixed steps are not solved per sample")
    errors = []
    for steps in (8, 16, 32):
        h = 2 / steps
        size = {"first_step": h, "min_step": h, "max_step": h}
        found = fastnode.solve(
            swing, rows(2), times(0, 2), method=method, save="dense", per_sample=per_sample,
            **({"steps": steps} if method == "rk4" else size),
        )  # fmt: skip
        t = torch.linspace(0, 2, 201, dtype=torch.float64)
        y = found.evaluate(t)
        assert y.shape == (201, 2, 1)
        errors.append((y[:, 0, 0] - solution(t)).abs().max().item())
    assert math.log2(errors[1] / errors[2]) > order - 0.5


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("per_sample", [False, True])
def test_evaluate_matches_saved_times_without_calls(per_sample, direction):
    calls = []

    def field(t, y):
        calls.append(t)
        return swing(t, y)

    t = direction * torch.linspace(0, 2, 11, dtype=torch.float64)
    found = fastnode.solve(field, rows(3), t, save="dense", per_sample=per_sample)
    count = len(calls)
    torch.testing.assert_close(found.evaluate(t), found.ys, rtol=1e-14, atol=1e-14)
    assert torch.equal(found.evaluate(float(t[0])), found.ys[0])
    assert torch.equal(found.evaluate(float(t[-1])), found.ys[-1])
    steps = found.steps[0] if per_sample else found.steps
    at_steps = found.evaluate(steps.times)
    wanted = steps.states if per_sample else steps.states[:, 0]
    torch.testing.assert_close(at_steps[:, 0], wanted, rtol=1e-14, atol=1e-14)
    assert found.evaluate(t[:0]).shape == (0, 3, 1)
    assert len(calls) == count


def test_evaluate_takes_times_of_any_shape():
    y0 = rows(3)
    joint = fastnode.solve(swing, y0, times(0, 2), save="dense")
    t = torch.rand(2, 4, generator=torch.Generator().manual_seed(0)).double()
    assert joint.evaluate(t).shape == (2, 4, 3, 1)
    assert torch.equal(joint.evaluate(t)[1, 2], joint.evaluate(t[1, 2]))
    ts = torch.stack([times(0, 2), times(1, -1), times(-1, 0)])
    each = fastnode.solve(swing, y0, ts, save="dense", per_sample=True)
    middle = ts.mean(1, keepdim=True)
    found = each.evaluate(middle)
    for b in range(3):
        alone = fastnode.solve(swing, y0[b], ts[b], save="dense")
        torch.testing.assert_close(found[0, b], alone.evaluate(middle[b, 0]))


@pytest.mark.parametrize("per_sample", [False, True])
def test_evaluate_outside_of_what_was_solved_is_an_error(per_sample):
    found = fastnode.solve(swing, rows(2), times(1, 0), save="dense", per_sample=per_sample)
    for t in (-0.01, 1.01, math.nan, times(0.5, 2)):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\], which was solved, got"):
            found.evaluate(t)
    if per_sample:
        with pytest.raises(ValueError, match=r"shape \[T\] or \[2, T\], got \(3, 1\)"):
            found.evaluate(torch.full((3, 1), 0.5))
    plain = fastnode.solve(swing, rows(2), times(1, 0), per_sample=per_sample)
    with pytest.raises(ValueError, match='save="dense"'):
        plain.evaluate(0.5)


@pytest.mark.parametrize("per_sample", [False, True])
def test_gradients_flow_through_evaluate(per_sample):
    def at(y, t):
        found = fastnode.solve(
            swing, y, times(0, 1), save="dense", per_sample=per_sample,
            first_step=0.25, min_step=0.25, max_step=0.25,
        )  # fmt: skip
        return found.evaluate(t)

    y0, t = rows(2).requires_grad_(), times(0.1, 0.6).requires_grad_()
    assert torch.autograd.gradcheck(at, (y0, t))


def test_stats_have_a_row_for_each_sample():
    joint = fastnode.solve(swing, rows(3), times(0, 2)).stats
    columns = joint.to_dict()
    assert columns["status"] == ["finished"] and columns["nfe"][0] > 0
    assert columns["h_min"][0] <= columns["h_mean"][0] <= columns["h_max"][0]
    lines = str(joint).splitlines()
    assert len(lines) == 2 and len(set(map(len, lines))) == 1
    each = fastnode.solve(swing, rows(3), times(0, 2), per_sample=True).stats
    assert each.to_dict()["sample"] == [0, 1, 2] and len(str(each).splitlines()) == 4
    nothing = fastnode.solve(swing, rows(3), times(0)).stats.to_dict()
    assert nothing["accepted"] == [0] and math.isnan(nothing["h_min"][0])


@pytest.mark.parametrize("per_sample", [False, True])
def test_plot_draws_steps_error_and_sizes(per_sample):
    pytest.importorskip("matplotlib")
    found = fastnode.solve(swing, rows(3), times(0, 2), per_sample=per_sample)
    axes = found.plot().axes
    assert [axis.get_ylabel() for axis in axes] == ["steps", "error / tolerance", "h", "stiffness"]
    assert all(len(axis.lines) == (3 if per_sample else 1) for axis in axes)
    if per_sample:
        assert len(found.plot([1]).axes[0].lines) == 1


def test_plot_without_matplotlib_says_what_is_missing(monkeypatch):
    original = builtins.__import__

    def without(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *rest)

    found = fastnode.solve(swing, rows(1), times(0, 2))
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="plot needs matplotlib"):
        found.plot()


def test_solutions_are_compared_by_identity():
    y0, t = torch.ones(3), torch.tensor([0.0, 1.0])
    first, second = (fastnode.solve(lambda t, y: -y, y0, t) for _ in range(2))
    assert first == first and first != second
    assert len({first, second}) == 2


@pytest.mark.parametrize("adjoint", ["backprop", "checkpoint", "none"])
@pytest.mark.parametrize(
    "options", [{}, {"per_sample": True}, {"method": "rk4", "steps": 2}, {"engine": "reference"}]
)
def test_evaluate_keeps_its_own_y0(options, adjoint):
    y0 = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    w = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    held = {} if adjoint == "backprop" else {"adjoint_params": (w,)}
    ts = torch.tensor([0.0, 1.0], dtype=torch.float64)
    found = fastnode.solve(
        lambda t, y: w * y, y0, ts, save="dense", adjoint=adjoint, **held, **options
    )
    at = torch.tensor([0.0, 0.05, 0.9], dtype=torch.float64)
    before = found.evaluate(at).detach().clone()
    ys = found.ys.detach().clone()
    y0.mul_(10)
    torch.testing.assert_close(found.evaluate(at).detach(), before, rtol=0, atol=0)
    torch.testing.assert_close(found.ys.detach(), ys, rtol=0, atol=0)


@pytest.mark.parametrize("per_sample", [True, False])
def test_evaluate_keeps_its_own_y0_without_steps(per_sample):
    y0 = torch.ones(2, 1, dtype=torch.float64)
    ts = torch.zeros(1, dtype=torch.float64)
    found = fastnode.solve(lambda t, y: -y, y0, ts, save="dense", per_sample=per_sample)
    y0.mul_(10)
    torch.testing.assert_close(found.evaluate(ts), torch.ones(1, 2, 1, dtype=torch.float64))
    torch.testing.assert_close(found.ys, torch.ones(1, 2, 1, dtype=torch.float64))
