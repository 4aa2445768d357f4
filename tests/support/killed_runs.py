"""Kills training runs and writes of files by SIGKILL: python killed_runs.py FOLDER KILLS

A moment is a number of calls and returns of functions, for runs drawn from a fixed seed; so each
execution kills at the same places. Prints as JSON how the runs ended that were resumed, and what
the files then held. Each run is a process of its own, forked from this one, which has torch loaded
and has computed nothing: a fork may not follow threads.
"""

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo  # noqa: F401  a child would import it anew
from children import in_child
from tiny_run import make_run, same

from fastnode.train_step import compiled
from fastnode.training import CHECKPOINT, METRICS, Trainer, checkpoint


def uncounted(function: Callable) -> Callable:
    """Its calls are no moments: to trace a loss takes so many that few would be left for steps."""

    def call(*arguments: object) -> object:
        before = sys.getprofile()
        sys.setprofile(None)
        try:
            return function(*arguments)
        finally:
            sys.setprofile(before)

    return call


compiled.compile_loss = uncounted(compiled.compile_loss)


def counted(work: Callable[[], None], moment: int | None = None) -> int:
    """Does the work up to the moment, then kills the process; the number of its moments if None."""
    seen = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal seen
        seen += 1
        if seen == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    work()
    sys.setprofile(None)
    return seen


def train(out: Path, *kind: str) -> None:
    Trainer(*make_run(*kind), out, checkpoint_every=2, resume=True).run()


def result(out: Path) -> list:
    return [checkpoint.load(out / CHECKPOINT), json.loads((out / METRICS).read_text())]


def length_of(work: Callable[[], None], note: Path) -> int:
    """The number of moments of a work, done in a process of its own."""
    assert in_child(lambda: note.write_text(str(counted(work)))) == 0
    return int(note.read_text())


def kill_trainings(folder: Path, kills: int, *kind: str) -> list[tuple[int, bool]]:
    """Of each run: after which step it was resumed, and whether it ended as the whole one."""
    whole, found = folder / "whole", []
    draw, length = random.Random(1), length_of(lambda: train(whole, *kind), folder / "length")
    for number in range(kills):
        out, moment = folder / str(number), draw.randrange(length * 99 // 100)
        killed = in_child(lambda: counted(lambda: train(out, *kind), moment))  # noqa: B023  done at once
        assert killed == -signal.SIGKILL, killed
        saved = out / CHECKPOINT
        step = checkpoint.load(saved)["step"] if saved.exists() else 0
        assert in_child(lambda: train(out, *kind)) == 0  # noqa: B023
        found.append((step, same(result(out), result(whole))))
    return found


def kill_writes(path: Path) -> list[bytes]:
    """What a file holds after a kill at each moment of its replacement."""
    found = []
    length = length_of(lambda: checkpoint.write_atomically(path, b"new"), path.with_name("length"))
    for moment in range(1, length + 1):
        path.write_bytes(b"old")
        in_child(lambda: counted(lambda: checkpoint.write_atomically(path, b"new"), moment))  # noqa: B023
        found.append(path.read_bytes())
    return found


def main(folder: Path, kills: int) -> None:
    torch.set_num_threads(1)
    report = {"runs": [], "writes": [each.decode() for each in kill_writes(folder / "file")]}
    for kind in (("regression", "simfree"), ("classification", "node")):
        place = folder / kind[0]
        place.mkdir()
        report["runs"] += kill_trainings(place, kills // 2, *kind)
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
