"""fastnode in the place of torchdiffeq, for libraries that import that by its name."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

import fastnode

ROOT = Path(fastnode.__file__).parent.parent

#: A library that uses torchdiffeq in the ways in which others do.
LIBRARY = {
    "__init__.py": "from .layer import end, names, Layer",
    "layer.py": """
        import torch
        import torchdiffeq
        from torchdiffeq import odeint_adjoint, odeint_event
        from torchdiffeq._impl.odeint import SOLVERS


        def names():
            return set(SOLVERS)


        def end(y0, t):
            return torchdiffeq.odeint(lambda t, y: -y, y0, t, method="dopri5")[-1]


        class Layer(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = torch.nn.Linear(2, 2)

            def forward(self, y):
                field = lambda t, y: self.linear(y)
                t = torch.tensor([0.0, 1.0])
                return odeint_adjoint(field, y, t, adjoint_params=tuple(self.parameters()))[-1]
    """,
}


def run(tmp_path, program):
    folder = tmp_path / "uses_torchdiffeq"
    folder.mkdir()
    for name, text in LIBRARY.items():
        (folder / name).write_text(textwrap.dedent(text))
    path = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]\n"
    done = subprocess.run(
        [sys.executable, "-c", path + textwrap.dedent(program)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_library_that_imports_torchdiffeq_gets_fastnode(tmp_path):
    run(
        tmp_path,
        """
        import fastnode
        fastnode.use_as("torchdiffeq")
        fastnode.use_as("torchdiffeq")
        import torch, torchdiffeq, uses_torchdiffeq, torchdiffeq._impl.odeint
        assert torchdiffeq is fastnode
        assert torchdiffeq._impl.odeint is fastnode._impl.odeint
        assert uses_torchdiffeq.layer.odeint_adjoint is fastnode.odeint_adjoint
        assert "sdirk2" in uses_torchdiffeq.names()
        end = uses_torchdiffeq.end(torch.ones(3), torch.tensor([0.0, 1.0]))
        torch.testing.assert_close(end, torch.exp(torch.tensor(-1.0)).expand(3))
        layer = uses_torchdiffeq.Layer()
        layer(torch.randn(4, 2)).sum().backward()
        assert layer.linear.weight.grad.isfinite().all()
        try:
            import torchdiffeq._impl.rk_common
        except ModuleNotFoundError:
            pass
        else:
            raise AssertionError
        """,
    )


@pytest.mark.skipif(find_spec("torchdiffeq") is None, reason="torchdiffeq is not installed")
@pytest.mark.slow
def test_an_earlier_import_is_named_unless_nobody_kept_it(tmp_path):
    printed = run(
        tmp_path,
        """
        import fastnode, uses_torchdiffeq
        for drop in (False, True):
            if drop:
                del sys.modules["uses_torchdiffeq"], sys.modules["uses_torchdiffeq.layer"]
            try:
                fastnode.use_as("torchdiffeq")
            except RuntimeError as error:
                print(error)
        import torchdiffeq
        assert torchdiffeq is fastnode
        import uses_torchdiffeq
        assert uses_torchdiffeq.layer.torchdiffeq is fastnode
        """,
    )
    assert printed == (
        "torchdiffeq has been imported already, by uses_torchdiffeq.layer: call "
        "fastnode.use_as('torchdiffeq') before that\n"
    )


@pytest.mark.parametrize("name", ["torch", "torchode", "", None])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="name must be one of 'torchdiffeq', got"):
        fastnode.use_as(name)


FLOW_MATCHING = """
    import fastnode
    fastnode.use_as("torchdiffeq")
    import torch
    from flow_matching.solver import ODESolver
    from flow_matching.utils import ModelWrapper
    import flow_matching.solver.ode_solver as module
    assert module.odeint is fastnode.odeint

    class Field(ModelWrapper):
        def forward(self, x, t, **extras):
            return -x

    solver = ODESolver(velocity_model=Field(torch.nn.Identity()))
    for method, step in (("dopri5", None), ("midpoint", 0.01)):
        end = solver.sample(x_init=torch.ones(3, 2), step_size=step, method=method)
        torch.testing.assert_close(
            end, torch.full((3, 2), 0.3679), rtol=1e-3, atol=1e-3
        )
"""
TORCHCDE = """
    import fastnode
    fastnode.use_as("torchdiffeq")
    import torch, torchcde
    assert torchcde.solver.torchdiffeq is fastnode

    class Field(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 4 * 3)

        def forward(self, t, z):
            return self.linear(z).tanh().view(*z.shape, 3)

    x = torchcde.hermite_cubic_coefficients_with_backward_differences(torch.rand(2, 10, 3))
    X, field = torchcde.CubicSpline(x), Field()
    for options in ({"method": "rk4"}, {"method": "dopri5", "rtol": 1e-4, "atol": 1e-4}):
        field.zero_grad()
        z = torchcde.cdeint(X=X, func=field, z0=torch.ones(2, 4), t=X.interval, **options)
        assert z.shape == (2, 2, 4)
        z[:, -1].sum().backward()
        assert field.linear.weight.grad.isfinite().all()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "program"), [("flow_matching", FLOW_MATCHING), ("torchcde", TORCHCDE)]
)
def test_published_libraries_run_on_fastnode(library, program, tmp_path):
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    run(tmp_path, program)
