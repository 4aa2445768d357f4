"""Training runs: configuration, loop, checkpoints, evaluation."""

from fastnode.training.config import METHODS, REGULARIZERS, Config
from fastnode.training.evaluation import evaluate, solvers_of
from fastnode.training.loop import CHECKPOINT, METRICS, Progress, Trainer
from fastnode.training.models import build_model, recipe_for, restore

__all__ = [
    "CHECKPOINT",
    "METHODS",
    "METRICS",
    "REGULARIZERS",
    "Config",
    "Progress",
    "Trainer",
    "build_model",
    "evaluate",
    "recipe_for",
    "restore",
    "solvers_of",
]
