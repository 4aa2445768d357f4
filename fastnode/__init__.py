"""fastnode: custom kernels for Neural ODEs in PyTorch."""

from fastnode.errors import MaxStepsExceeded, NonFiniteState, SolverError, StepSizeUnderflow
from fastnode.odeint import odeint

__version__ = "0.1.0"

__all__ = [
    "MaxStepsExceeded",
    "NonFiniteState",
    "SolverError",
    "StepSizeUnderflow",
    "__version__",
    "odeint",
]
