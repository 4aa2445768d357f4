"""Flow matching: paths between two end points, and the loss that trains a field to follow them."""

from fastnode.flow.objective import flow_loss, linear_flow_loss
from fastnode.flow.paths import Concave, Convex, Linear, Path, Target, get_path, sample_time

__all__ = [
    "Concave",
    "Convex",
    "Linear",
    "Path",
    "Target",
    "flow_loss",
    "get_path",
    "linear_flow_loss",
    "sample_time",
]
