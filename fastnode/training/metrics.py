"""What metrics.json tells about a run."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from fastnode.training.loop import Trainer


def summary(run: Trainer, results: dict[str, Any] | None) -> dict[str, Any]:
    """The run so far, as JSON has it.

    `history` has a row for each interval: the last step, mean loss and its parts, seconds spent on
    training steps (validation and checkpoints left out), samples per second and evaluations of the
    field per step; `seconds`, `samples_per_second` and `nfe_per_step` are those of all rows.
    `validation` is the best one (RMSE or accuracy) and its step. `results` are those of `evaluate`
    at the end of the run, None before.
    """
    seconds = sum(row["seconds"] for row in run.history)
    steps = run.history[-1]["step"] if run.history else 0
    nfe = _mean_per_step(run.history, "nfe_per_step")
    best = run.best
    return {
        "config": asdict(run.config),
        "data": run.data.source,
        "torch": torch.__version__,
        "device": run.device.type,
        "threads": torch.get_num_threads(),
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "step": run.step,
        "finished": run.finished,
        "seconds": seconds,
        "samples_per_second": steps * run.config.batch / seconds if seconds else None,
        "nfe_per_step": nfe,
        "validation": {key: best[key] for key in ("step", "value")} if best["model"] else None,
        "results": results,
        "history": run.history,
    }


def _mean_per_step(history: list[dict[str, Any]], name: str) -> float | None:
    total, before = 0.0, 0
    for row in history:
        total += row[name] * (row["step"] - before)
        before = row["step"]
    return total / before if before else None
