from __future__ import annotations

import builtins
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastnode


def decay(t, y):
    return -y


def turn(t, y):
    return torch.stack([y[..., 1], -y[..., 0]], dim=-1)


ROOT = Path(__file__).parents[1]
TS = torch.linspace(0, 3, 7, dtype=torch.float64)


def curves(figure):
    pytest.importorskip("matplotlib")
    (axes,) = figure.axes
    lines = [line for line in axes.lines if line.get_marker() == "None"]
    return axes, [tuple(map(torch.as_tensor, line.get_data())) for line in lines]


@pytest.mark.parametrize("shape", [(), (1,), (4, 1)], ids=str)
def test_plot_trajectories_draws_one_component_over_t(shape):
    pytest.importorskip("matplotlib")
    ys = fastnode.odeint(decay, torch.ones(shape, dtype=torch.float64), TS)
    axes, lines = curves(fastnode.plot_trajectories(TS, ys))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("t", "y")
    assert len(lines) == (4 if len(shape) == 2 else 1)
    for x, y in lines:
        assert torch.equal(x, TS) and torch.equal(y, ys.reshape(7, -1)[:, 0])
    assert (axes.get_legend() is not None) == (len(lines) > 1)


def test_plot_trajectories_draws_two_components_as_phase():
    pytest.importorskip("matplotlib")
    ys = fastnode.odeint(turn, torch.eye(3, 2, dtype=torch.float64), TS)
    axes, lines = curves(fastnode.plot_trajectories(TS, ys.requires_grad_(), samples=[2, 0]))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("y[0]", "y[1]")
    assert len(lines) == 2
    assert torch.equal(torch.stack(lines[0], dim=1), ys[:, 2])
    starts = [line for line in axes.lines if line.get_marker() == "o"]
    assert [line.get_xydata().tolist() for line in starts] == [[[0.0, 0.0]], [[1.0, 0.0]]]
    axes, ((x, y),) = curves(fastnode.plot_trajectories(TS, ys[:, 1], components=[1]))
    assert axes.get_ylabel() == "y[1]" and torch.equal(y, ys[:, 1, 1])


def test_solution_plot_trajectories_draws_dense_output():
    pytest.importorskip("matplotlib")
    y0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    sparse = fastnode.solve(turn, y0, TS[[0, -1]], rtol=1e-8, atol=1e-8)
    _, ((x, y),) = curves(sparse.plot_trajectories())
    assert torch.equal(torch.stack([x, y], 1), sparse.ys)
    dense = fastnode.solve(turn, y0, TS[[0, -1]], rtol=1e-8, atol=1e-8, save="dense")
    _, ((x, y),) = curves(dense.plot_trajectories())
    assert len(x) > 100
    torch.testing.assert_close(x**2 + y**2, torch.ones_like(x), rtol=1e-5, atol=0)


@pytest.mark.parametrize("save", ["times", "dense"])
def test_per_sample_trajectories_keep_their_own_times(save):
    pytest.importorskip("matplotlib")
    ts = torch.stack([TS, 2 * TS, -TS])
    options = {} if save == "times" else {"save": save}
    found = fastnode.solve(decay, torch.ones(3), ts, per_sample=True, **options)
    axes, lines = curves(found.plot_trajectories())
    assert axes.get_xlabel() == "t" and len(lines) == 3
    for row, (x, y) in enumerate(lines):
        assert x[-1] == ts[row, -1]
        torch.testing.assert_close(y, torch.exp(-x), rtol=1e-2, atol=1e-2, check_dtype=False)


def test_a_solve_that_an_event_ended_is_drawn_to_there():
    pytest.importorskip("matplotlib")
    half = fastnode.Event(lambda t, y: y[0] - 0.5)
    found = fastnode.solve(decay, torch.ones(1), TS, events=half, save="dense")
    _, ((x, y),) = curves(found.plot_trajectories())
    assert float(y[-1]) == pytest.approx(0.5, abs=1e-3) and bool(y.isfinite().all())


@pytest.mark.parametrize(
    ("ys", "options", "error", "message"),
    [
        (torch.ones(7, 3), {}, ValueError, "choose one or two of the 3 components, got 3"),
        (torch.ones(7, 3), {"components": []}, ValueError, "choose one or two .* got 0"),
        (torch.ones(7, 3), {"components": [3]}, ValueError, "components must lie in 0 to 2, got 3"),
        (torch.ones(7, 2, 1), {"samples": [-1]}, ValueError, "samples must lie in 0 to 1, got -1"),
        (torch.ones(7, 2, 2, 2), {}, ValueError, r"\[T, B, D\], got \[7, 2, 2, 2\]"),
        (torch.tensor(1.0), {}, ValueError, r"\[T, B, D\], got \[\]"),
        (torch.ones(6, 1), {}, ValueError, r"ts must be \[6\] or \[1, 6\], got \[7\]"),
        (torch.ones(7, 1, dtype=torch.complex64), {}, TypeError, "real tensor, got torch.complex"),
        ((torch.ones(7), torch.ones(7)), {}, TypeError, "ys must be a real tensor, got tuple"),
    ],
)
def test_plot_trajectories_names_wrong_arguments(ys, options, error, message):
    with pytest.raises(error, match=message):
        fastnode.plot_trajectories(TS, ys, **options)


def test_trajectories_of_a_tuple_state_are_drawn_one_by_one():
    state = (torch.ones(1), torch.ones(1))
    found = fastnode.solve(lambda t, y: (-y[0], -y[1]), state, TS)
    with pytest.raises(ValueError, match="the state is a tuple"):
        found.plot_trajectories()


def test_plots_without_matplotlib_say_what_is_missing(monkeypatch):
    original = builtins.__import__

    def without(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="plot_trajectories needs matplotlib: pip install"):
        fastnode.plot_trajectories(TS, torch.ones(7))


@pytest.mark.slow
def test_importing_fastnode_imports_no_matplotlib():
    code = "import sys, fastnode; print('matplotlib' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "False", found.stderr


def test_the_pictures_of_the_page_are_those_of_its_code(tmp_path):
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("plots_tool", ROOT / "docs/tools/plots.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    drawn = tool.draw(ROOT / "docs/plots.md", tmp_path)
    names = ["plot_steps.svg", "plot_over_time.svg", "plot_phase.svg"]
    assert [path.name for path in drawn] == names
    for path in drawn:
        assert path.stat().st_size > 1000 and (ROOT / "docs/images" / path.name).is_file()
