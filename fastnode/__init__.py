"""fastnode: custom kernels for Neural ODEs in PyTorch."""

from typing import TYPE_CHECKING

from fastnode import flow, nn, regularize
from fastnode.adjoints.discrete.revolve import Revolve
from fastnode.api.embedded_step import EmbeddedStep, embedded_step
from fastnode.api.odeint import odeint, odeint_event
from fastnode.api.odeint_adjoint import odeint_adjoint
from fastnode.api.odeint_dense import odeint_dense
from fastnode.api.solve import solve
from fastnode.api.solve_triton import Trajectories, solve_triton
from fastnode.compat.use_as import use_as
from fastnode.control.controllers import Controller
from fastnode.engines.methods import register_method
from fastnode.errors import (
    EventNotFound,
    MaxStepsExceeded,
    NonFiniteState,
    NotCompilable,
    SolverError,
    StagesNotSolved,
    StepSizeUnderflow,
)
from fastnode.events.watch import Event
from fastnode.extension import empty_cache
from fastnode.fields.compile import compile_field
from fastnode.fields.fuse import NotFusable, fuse
from fastnode.plots import plot_trajectories
from fastnode.solution import Solution, Steps

if TYPE_CHECKING:
    from fastnode.train_step.step import TrainStep

__version__: str

__all__ = [
    "Controller",
    "EmbeddedStep",
    "Event",
    "EventNotFound",
    "MaxStepsExceeded",
    "NonFiniteState",
    "NotCompilable",
    "NotFusable",
    "Revolve",
    "Solution",
    "SolverError",
    "StagesNotSolved",
    "StepSizeUnderflow",
    "Steps",
    "TrainStep",
    "Trajectories",
    "__version__",
    "compile_field",
    "embedded_step",
    "empty_cache",
    "flow",
    "fuse",
    "nn",
    "odeint",
    "odeint_adjoint",
    "odeint_dense",
    "odeint_event",
    "plot_trajectories",
    "register_method",
    "regularize",
    "solve",
    "solve_triton",
    "use_as",
]


# A type checker that saw this would take any misspelt name for an attribute.
if not TYPE_CHECKING:

    def __getattr__(name):
        # Looked up when asked for: importlib.metadata reads files of every installed package.
        if name == "__version__":
            from importlib.metadata import PackageNotFoundError, version

            try:
                return version("fastnode")
            except PackageNotFoundError:
                return "0+unknown"
        if name == "TrainStep":
            # What compiles losses is loaded by those who train.
            from fastnode.train_step.step import TrainStep

            globals()[name] = TrainStep
            return TrainStep
        raise AttributeError(f"module 'fastnode' has no attribute {name!r}")
