"""Training runs: configuration, loop, checkpoints, evaluation."""

from fastnode.training.config import METHODS, REGULARIZERS, Config
from fastnode.training.evaluation import evaluate, predict, solver_named, solvers_of
from fastnode.training.loop import CHECKPOINT, METRICS, Progress, Trainer
from fastnode.training.models import build_model, recipe_for, restore, restore_predictor

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
    "predict",
    "recipe_for",
    "restore",
    "restore_predictor",
    "solver_named",
    "solvers_of",
]
