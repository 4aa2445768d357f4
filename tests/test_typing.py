"""Our annotations seen by a user's program: what is right passes, what is wrong is told."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BESIDE = Path(sys.executable).with_name("pyright")
PYRIGHT = str(BESIDE) if BESIDE.exists() else shutil.which("pyright")
pytestmark = pytest.mark.skipif(PYRIGHT is None, reason="pyright is not installed")

RIGHT = """
import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import fastnode
from fastnode.flow import Linear, Path, Target, flow_loss, sample_time
from fastnode.nn import LossParts, MLPField, NeuralODE, SimulationFreeNODE
from fastnode.regularize import Exponential, Local

field = MLPField(2, [16, 16], activation="tanh")
y0, ts = torch.randn(8, 2), torch.tensor([0.0, 1.0])
solution = fastnode.solve(
    field, y0, ts, method="tsit5", rtol=1e-4, controller=fastnode.Controller(max_step=0.5),
    events=[fastnode.Event(lambda t, y: y[0, 0])], adjoint=fastnode.Revolve(4), save="steps",
)
assert_type(solution, fastnode.Solution)
text: str = str(solution.stats)
if isinstance(solution.steps, fastnode.Steps):
    assert_type(solution.steps.error, Tensor)
y1: Tensor = fastnode.odeint(lambda t, y: -y, y0, ts, options={"max_num_steps": 100})[-1]
pair: tuple[Tensor, ...] = fastnode.odeint(lambda t, y: (y[1], -y[0]), (y0, y0), ts)
y1 = fastnode.odeint_adjoint(field, y0, ts, adjoint_params=tuple(field.parameters()))
when, states = fastnode.odeint_event(field, y0, ts[0], event_fn=lambda t, y: y[0, 0])
fastnode.odeint_dense(field, y0, 0.0, 1.0)(0.5)
step = fastnode.embedded_step(field, 0.0, y0, 0.1)
assert_type(step.norm, Tensor)
fastnode.register_method("mine", [[], ["1/2"]], [0, 1.0], order=2)
try:
    fastnode.solve(field, y0, ts)
except fastnode.SolverError as error:
    at: float | None = error.time

model = NeuralODE(field, regularizer=Local(weight=Exponential(2.5, 1.0, 100)))
loss: Tensor = model(y0).sum() + model.regularization
free = SimulationFreeNODE(nn.Identity(), nn.Identity(), nn.Identity(), field, path=Linear())
assert_type(free.loss(y0, y0), LossParts)
path = Path(lambda t: 1 - t, lambda t: t, lambda t: -torch.ones_like(t), torch.ones_like)
zt, target = path.interpolate(y0, y0, sample_time(8))
assert_type(target, Target)
assert_type(flow_loss(zt, target), Tensor)
"""

WRONG = """
import torch
import fastnode
from fastnode.nn import MLPField

field, y0, ts = MLPField(2, 16), torch.randn(8, 2), torch.tensor([0.0, 1.0])
fastnode.solve(field, y0)  # no times
fastnode.solve(field, y0, ts, method=5)
fastnode.solve(field, y0, ts, tolerance=1e-3)
fastnode.solve(field, y0, [0.0, 1.0])
fastnode.solve(field, y0, ts).y
fastnode.odeint(3, y0, ts)
MLPField("2", 16)
fastnode.Controller(safety="high")
fastnode.Event(lambda t: t)
"""


def check(program: str, folder: Path) -> list[int]:
    """The lines of a program in which there are errors, the first line being 1."""
    (folder / "program.py").write_text(program.lstrip())
    settings = {"extraPaths": [str(ROOT)], "pythonVersion": "3.10", "typeCheckingMode": "standard"}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [str(PYRIGHT), "--outputjson", "--pythonpath", sys.executable, "-p", str(folder)],
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout)["generalDiagnostics"]
    return sorted({x["range"]["start"]["line"] + 1 for x in found if x["severity"] == "error"})


def test_a_program_with_errors_is_told_of_each(tmp_path):
    lines = WRONG.lstrip().splitlines()
    first = lines.index("fastnode.solve(field, y0)  # no times") + 1
    assert check(WRONG, tmp_path) == list(range(first, len(lines) + 1))


@pytest.mark.slow
def test_a_program_without_errors_passes(tmp_path):
    assert check(RIGHT, tmp_path) == []
