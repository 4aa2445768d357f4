"""fastnode: custom kernels for Neural ODEs in PyTorch."""

from fastnode import flow, nn
from fastnode.errors import (
    MaxStepsExceeded,
    NonFiniteState,
    SolverError,
    StagesNotSolved,
    StepSizeUnderflow,
)
from fastnode.extension import empty_cache
from fastnode.odeint import odeint

__version__ = "0.1.0"

__all__ = [
    "MaxStepsExceeded",
    "NonFiniteState",
    "SolverError",
    "StagesNotSolved",
    "StepSizeUnderflow",
    "__version__",
    "empty_cache",
    "flow",
    "nn",
    "odeint",
]
