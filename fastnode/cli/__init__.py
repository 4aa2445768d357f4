"""The command line: fastnode train | evaluate | predict | info | cache.

Commands import what they need, so that help and wrong arguments take no longer than necessary.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastnode.cli.arguments import WRONG, make_parser

if TYPE_CHECKING:
    import torch

    from fastnode.datasets import Dataset
    from fastnode.training import Config, Progress

INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 2 for an error, 130 for an interruption."""
    parsed = make_parser().parse_args(arguments)
    from fastnode import SolverError

    # What the user can put right is one line; anything else is a bug and keeps its trace.
    expected = (ValueError, OSError, ImportError, FloatingPointError, SolverError)
    try:
        return {
            "train": _train,
            "evaluate": _evaluate,
            "predict": _predict,
            "info": _info,
            "cache": _cache,
        }[parsed.command](parsed)
    except expected as error:
        print(f"fastnode: error: {' '.join(str(error).split())}", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        print("fastnode: interrupted", file=sys.stderr)
        return INTERRUPTED


def _train(arguments: argparse.Namespace) -> int:
    from fastnode import datasets
    from fastnode.training import Trainer, recipe_for

    with _processes(arguments.device) as (device, rank, processes):
        data = datasets.load(
            arguments.dataset, arguments.split, arguments.target, arguments.task, arguments.seed
        )
        config = _config(arguments, data, processes)
        trainer = Trainer(
            config,
            data,
            recipe_for(data, config.recipe),
            arguments.out,
            device=device,
            checkpoint_every=arguments.checkpoint_every,
            resume=arguments.resume,
        )
        if rank == 0:
            begin = f" from step {trainer.step}" if trainer.step else ""
            print(f"{_title(data)}, {config.method}, {device.type}{begin}", flush=True)
        with _stop_on_signals() as received, _progress(trainer.step, rank == 0) as report:
            results = trainer.run(report, lambda: bool(received))
        if not trainer.finished:
            if rank == 0:
                message = f"stopped at step {trainer.step}; --resume continues the run"
                print(f"fastnode: {message}", file=sys.stderr)
            return INTERRUPTED
        if results is not None:
            print(_table(results))
    return 0


def _config(arguments: argparse.Namespace, data: Dataset, processes: int) -> Config:
    """The settings of the command line; those that were left out are the recipe's."""
    from fastnode.training import Config, recipe_for

    recipe = recipe_for(data, arguments.recipe)
    values: dict[str, Any] = {
        each.name: getattr(arguments, each.name, None) for each in fields(Config)
    }
    values["processes"] = processes
    if data.table is not None:
        # Whatever folder the run is resumed or evaluated from.
        values["dataset"] = data.source
    defaults = {name: getattr(recipe, name) for name in ("steps", "batch", "lr")}
    defaults["method"] = recipe.default_method
    values |= {name: value for name, value in defaults.items() if values[name] is None}
    if values["eval_every"] is None:
        values["eval_every"] = Config.default_eval_every(len(data.x_train), values["batch"])
    return Config.from_dict(values)


def _evaluate(arguments: argparse.Namespace) -> int:
    from fastnode.training import evaluate, restore, solvers_of

    run = restore(_checkpoint(arguments.checkpoint), _device(arguments.device))
    config = run.config
    print(f"{_title(run.data)}, {config.method}, step {run.step}")
    solvers = solvers_of(run.recipe, config.tolerance)
    print(_table(evaluate(run.model, run.data, solvers)))
    return 0


def _predict(arguments: argparse.Namespace) -> int:
    from fastnode.training import checkpoint, predict, restore_predictor, solver_named

    out: Path = arguments.out
    if out.exists() and arguments.data.exists() and out.samefile(arguments.data):
        raise ValueError(f"--out must be another file than the data, got {out} for both")
    run = restore_predictor(_checkpoint(arguments.checkpoint), _device(arguments.device))
    solver = solver_named(arguments.solver, run.config, run.recipe)
    outputs, _ = predict(run.model, run.table.inputs(arguments.data), solver)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([run.table.target])
    writer.writerows([each] for each in run.table.texts(outputs))
    checkpoint.make_folder(out.parent)
    checkpoint.write_atomically(out, text.getvalue().encode())
    print(f"{len(outputs)} predictions of {run.table.target!r} by {solver.name} in {out}")
    return 0


def _checkpoint(path: Path) -> Path:
    """The checkpoint of a run that is named by it or by its folder."""
    from fastnode.training import CHECKPOINT

    return path / CHECKPOINT if path.is_dir() else path


def _title(data: Dataset) -> str:
    """What is trained on, and what was found of a file of one's own."""
    title = f"{data.name} ({data.source})"
    if data.table is None:
        return title
    classes = f", {data.num_classes} classes" if data.num_classes else ""
    return f"{title}, {data.task} of {data.table.target!r}{classes}"


def _info(arguments: argparse.Namespace) -> int:
    from fastnode.cli.info import describe

    for name, value in describe().items():
        print(f"{name:<18} {value}")
    return 0


def _cache(arguments: argparse.Namespace) -> int:
    from fastnode.fields import toolchain

    folder = toolchain.cache_folder()
    if arguments.clear:
        print(f"{toolchain.clear_cache()} compiled fields removed from {folder}")
        return 0
    kept = toolchain.libraries()
    size = sum(each.stat().st_size for each in kept) / 1e6
    print(f"{len(kept)} compiled fields in {folder}, {size:.1f} MB")
    return 0


def _table(results: dict[str, Any]) -> str:
    metric = results["metric"]
    lines = [f"{'solver':<10} {metric:>10} {'nfe':>8}"]
    for name, row in results["solvers"].items():
        value = f"{row[metric]:.2%}" if metric == "accuracy" else f"{row[metric]:.4g}"
        lines.append(f"{name:<10} {value:>10} {row['nfe']:>8.4g}")
    if "disagreement" in results:
        lines.append(f"disagreement of euler-1 and dopri5: {results['disagreement']:.2%}")
    return "\n".join(lines)


def _device(name: str | None) -> torch.device:
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"device {name!r} cannot be used: {reason}") from error
    return device


@contextlib.contextmanager
def _processes(device_name: str | None) -> Iterator[tuple[torch.device, int, int]]:
    """Device, rank and number of processes; joins the group that torchrun's variables describe."""
    import torch
    import torch.distributed as dist

    device = _device(device_name)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        yield device, 0, 1
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    yield device, dist.get_rank(), processes
    # Not after an error: the other processes may be waiting inside a collective.
    dist.destroy_process_group()


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[list[int]]:
    """Collects the first SIGINT or SIGTERM, to stop between two steps; the second acts at once."""
    received: list[int] = []
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(kind) for kind in kinds]

    def restore() -> None:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)

    def note(number: int, frame: object) -> None:
        received.append(number)
        restore()

    for kind in kinds:
        signal.signal(kind, note)
    try:
        yield received
    finally:
        restore()


@contextlib.contextmanager
def _progress(step: int, shown: bool) -> Iterator[Callable[[Progress], None]]:
    """A bar on stderr if that is a terminal and tqdm is installed, else a line at each report."""
    if not shown:
        yield lambda progress: None
        return
    try:
        from tqdm import tqdm
    except ImportError:
        tqdm = None
    if tqdm is None or not sys.stderr.isatty():
        yield _print_line
        return
    with tqdm(initial=step, unit="step", dynamic_ncols=True) as bar:

        def update(progress: Progress) -> None:
            bar.total = progress.steps
            bar.set_postfix_str(
                f"loss {progress.loss:.4g}, {progress.samples_per_second:,.0f} samples/s", False
            )
            bar.update(progress.step - bar.n)

        yield update


def _print_line(progress: Progress) -> None:
    print(
        f"step {progress.step}/{progress.steps}  loss {progress.loss:.4g}  "
        f"{progress.samples_per_second:,.0f} samples/s",
        file=sys.stderr,
        flush=True,
    )
