"""Runs a function in two processes that share a process group."""

from __future__ import annotations

import faulthandler
import gc
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD = 2
needs_gloo = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")


def in_two_processes(work: Callable[..., Any], *args: Any) -> Any:
    """What work(rank, *args) returns in the first of both; work must be importable."""
    with TemporaryDirectory() as folder:
        mp.spawn(_process, (folder, work, args), nprocs=WORLD)
        return torch.load(Path(folder, "result.pt"))


def _process(rank: int, folder: str, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    faulthandler.enable()  # an abort in a thread says in which call of Python it came
    dist.init_process_group(
        "gloo",
        init_method=Path(folder, "store").as_uri(),
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=60),
    )
    torch.set_num_threads(1)
    result = work(rank, *args)
    if rank == 0:
        torch.save(result, Path(folder, "result.pt"))
    del result
    gc.collect()
    # A process that leaves while the other still talks to it can abort in the other's threads.
    dist.barrier()
    dist.destroy_process_group()
    # What gloo's threads still hold of Python's is dropped under the interpreter's lock; a thread
    # that asks for it while the interpreter ends is unwound through C++ that allows none, and the
    # process aborts. Nothing is left to be done, so the interpreter does not end.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
