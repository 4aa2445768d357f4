"""torch.export and ONNX of modules with fixed steps: plain graphs that need no fastnode."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from fixed_step_modules import CASES, build

from fastnode.nn import NeuralODE

LOADING = """
import sys, torch
sys.modules["fastnode"] = None
path, = sys.argv[1:]
x, expected = torch.load(path + ".pt")
found = torch.export.load(path + ".pt2").module()(x)
torch.testing.assert_close(found, expected)
assert found.shape[0] == 9
"""


def exported(model, x):
    batch = torch.export.Dim("batch", min=1, max=4096)
    return torch.export.export(model.eval(), (x,), dynamic_shapes=({0: batch},))


@pytest.mark.parametrize(("name", "kind"), CASES)
@torch.no_grad()
def test_modules_of_fixed_steps_are_exported(name, kind):
    model, x = build(name, kind)
    program = exported(model, x)
    assert not [n for n in program.graph.nodes if "fastnode" in str(n.target)]
    for size in (6, 1, 11):
        other = torch.randn(size, x.shape[1])
        torch.testing.assert_close(program.module()(other), model(other))


def test_an_exported_file_loads_without_fastnode(tmp_path):
    model, x = build("SimulationFreeNODE", "MLPField")
    path, other = str(tmp_path / "model"), torch.randn(9, 5)
    torch.export.save(exported(model, x), path + ".pt2")
    torch.save((other, model(other).detach()), path + ".pt")
    done = subprocess.run([sys.executable, "-c", LOADING, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_trajectory_is_exported():
    model, x = build("NeuralODE", "MLPField")
    ts = torch.tensor([0.0, 0.2, 0.7, 1.0])
    program = torch.export.export(model.eval(), (x, ts))
    assert not [n for n in program.graph.nodes if "fastnode" in str(n.target)]
    torch.testing.assert_close(program.module()(x, ts + 1), model(x, ts + 1))


def test_an_exported_solve_has_gradients():
    model, x = build("NeuralODE", "plain")
    program = exported(model, x).module()
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    found, expected = (
        torch.autograd.grad(f(z).sum(), z)[0] for f, z in zip((program, model), inputs, strict=True)
    )
    torch.testing.assert_close(found, expected)


def test_a_forward_in_export_leaves_the_module_as_it_is():
    model, x = build("NeuralODE", "plain")
    before = model.nfe, model.regularization
    exported(model, x)
    assert (model.nfe, model.regularization) == before


@pytest.mark.parametrize("method", ["dopri5", "implicit_euler"])
def test_steps_that_depend_on_values_are_not_exported(method):
    model = NeuralODE(torch.nn.Sequential(), method)
    model.field.forward = lambda t, z: -z
    with pytest.raises(Exception, match="torch.export cannot record this solve"):
        exported(model, torch.ones(3, 4))


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(find_spec, ("onnxscript", "onnxruntime"))), reason="ONNX is not installed"
)
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_modules_of_fixed_steps_run_under_onnx(name, kind, tmp_path):
    import onnxruntime

    model, x = build(name, kind)
    path = tmp_path / "model.onnx"
    torch.onnx.export(exported(model, x), dynamo=True).save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in (6, 2):
        other = torch.randn(size, x.shape[1])
        (found,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
        np.testing.assert_allclose(found, model(other).detach().numpy(), rtol=1e-4, atol=1e-5)
