"""Training runs whose disk fails under them: python faulty_runs.py FOLDER

Each fault comes from the kernel, to the command line, after the first checkpoint and before the
run ends, or before it resumes. Prints as JSON what each run said and left, and how it was continued
when the fault was gone. A fault that a process may not make on this machine has a reason instead.
"""

import contextlib
import ctypes
import json
import os
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import sklearn.datasets  # noqa: F401  what each child would import anew
import torch
import torch._dynamo  # noqa: F401
from children import in_child
from tiny_run import same

from fastnode import cli
from fastnode.training import CHECKPOINT, METRICS, checkpoint

NEW_USER, NEW_MOUNTS = 0x10000000, 0x00020000
READ_ONLY, REMOUNT, BIND = 1, 32, 4096
#: Flags of a mount that only its owner may take away: nosuid, nodev, noexec, noatime, nodiratime.
KEPT = 2 | 4 | 8 | 1024 | 2048
C = ctypes.CDLL(None, use_errno=True)
TRAIN = ["train", "digits", "--device", "cpu", "--batch", "32", "--steps", "6"]
TRAIN += ["--checkpoint-every", "2", "--resume", "--out"]


def _done(status: int) -> None:
    if status != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def own_mounts() -> None:
    """From here on this process may mount, unseen by others, where user namespaces are allowed."""
    me = {"uid_map": os.getuid(), "gid_map": os.getgid()}
    _done(C.unshare(NEW_USER | NEW_MOUNTS))
    Path("/proc/self/setgroups").write_text("deny")
    for name, number in me.items():
        Path("/proc/self", name).write_text(f"{number} {number} 1")


def mount(what: str, where: Path, kind: str, flags: int, options: str = "") -> None:
    _done(C.mount(what.encode(), bytes(where), kind.encode(), flags, options.encode()))


def no_larger_files(out: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def folder_in_the_way(out: Path) -> None:
    (out / f".{CHECKPOINT}.part").mkdir()


def full_disk(out: Path) -> None:
    with contextlib.suppress(OSError), open(out / "others", "wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))


def read_only(out: Path) -> None:
    own_mounts()
    kept = os.statvfs(out).f_flag & KEPT
    mount(str(out), out, "", BIND)
    mount("", out, "", BIND | REMOUNT | READ_ONLY | kept)


FAULTS = {
    "no-larger-files": no_larger_files,
    "folder-in-the-way": folder_in_the_way,
    "full-disk": full_disk,
    "read-only": read_only,
}


def train_with(fault: Callable[[Path], None], out: Path) -> None:
    """The command, with the fault from the first checkpoint on, or at once if there is one."""
    save = checkpoint.save

    def save_then_fail(path: Path, state: dict) -> None:
        save(path, state)
        checkpoint.save = save
        fault(out)

    if (out / CHECKPOINT).exists():
        fault(out)
    else:
        checkpoint.save = save_then_fail
    sys.exit(cli.main([*TRAIN, str(out)]))


def train_on_small_disk(out: Path, kept: Path) -> None:
    """`train_with(full_disk)` on a disk of 16 MB, what is left on it copied away at the end."""
    own_mounts()
    mount("tmpfs", out, "tmpfs", 0, "size=16m")
    try:
        train_with(full_disk, out)
    finally:
        shutil.copytree(out, kept, ignore=shutil.ignore_patterns("others"))


def heard(work: Callable[[], None], log: Path) -> tuple[int, list[str]]:
    """Status and lines of stderr."""

    def work_aloud() -> None:
        with open(log, "wb", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        work()

    return in_child(work_aloud), log.read_text().splitlines()


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def suffer(name: str, folder: Path, whole: Path) -> dict:
    """A run under one fault, once more under it if that is possible, and then without."""
    fault, out, log = FAULTS[name], folder / "run", folder / "log"
    out.mkdir(parents=True)
    if fault is full_disk:
        disk, out = out, folder / "kept"
        codes_and_words = [heard(lambda: train_on_small_disk(disk, out), log)]
    else:
        codes_and_words = [heard(lambda: train_with(fault, out), log)]
        if fault is folder_in_the_way:
            (out / f".{CHECKPOINT}.part").rmdir()
        left = (out / CHECKPOINT).read_bytes()
        codes_and_words.append(heard(lambda: train_with(fault, out), log))
        if fault is folder_in_the_way:
            (out / f".{CHECKPOINT}.part").rmdir()
        assert (out / CHECKPOINT).read_bytes() == left
    report = {"heard": codes_and_words, "left": listing(out)}
    report["step"] = checkpoint.load(out / CHECKPOINT)["step"]
    report["resumed"], report["words"] = heard(lambda: sys.exit(cli.main([*TRAIN, str(out)])), log)
    report["equal"] = same(*(checkpoint.load(each / CHECKPOINT) for each in (out, whole)))
    report["finished"] = json.loads((out / METRICS).read_text())["results"] is not None
    return report


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    whole = folder / "whole"
    assert heard(lambda: sys.exit(cli.main([*TRAIN, str(whole)])), folder / "log")[0] == 0
    report = {}
    allowed = heard(own_mounts, folder / "log")
    for name, fault in FAULTS.items():
        if fault in (full_disk, read_only) and allowed[0]:
            report[name] = {"skipped": allowed[1][-1]}
        else:
            report[name] = suffer(name, folder / name, whole)
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
