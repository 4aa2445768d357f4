"""Atomic writes, which survive a kill, and checkpoints that are read without running code."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

FORMAT = "fastnode training checkpoint, version 1"
#: What the restricted unpickler raises for a malformed stream, and the training for an entry that
#: is not of the kind it expects.
MALFORMED = (
    pickle.UnpicklingError,
    struct.error,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    EOFError,
    OverflowError,
)


def make_folder(path: Path) -> None:
    """Makes a folder unless it is there; OSError naming it if that cannot be done."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"cannot make the folder {path}: {error.strerror}") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces `path` by `data` so that a kill at any moment leaves the old file or the new one.

    Raises OSError naming `path` if the folder cannot be written or the disk is full; the old file
    then stays.
    """
    # One fixed name, so that what a killed run left behind is overwritten by the next write.
    temporary = path.with_name(f".{path.name}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as JSON, atomically."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes the state of a run (see `Trainer`) as a checkpoint, atomically."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    write_atomically(path, buffer.getvalue())


def load(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint, onto the CPU, without running any code that it may hold.

    Raises:
        FileNotFoundError, OSError: the file cannot be read.
        ValueError: it is damaged, holds anything but tensors and plain values, or is not a
            checkpoint of fastnode.
    """
    data = Path(path).read_bytes()
    # Checkpoints are zip archives; torch's loaders of older formats must not see the file.
    if not data.startswith(b"PK\x03\x04"):
        raise ValueError(f"{path} is damaged or not a checkpoint: not a zip archive")
    with named(path, "is damaged or not a checkpoint"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} is not a {FORMAT}")
    return state


@contextlib.contextmanager
def named(path: str | Path, complaint: str = "is not a valid checkpoint") -> Iterator[None]:
    """What a malformed file or entry raises inside becomes a ValueError that names the file."""
    try:
        yield
    except MALFORMED as error:
        reason = (str(error).splitlines() or [""])[0]
        if reason.startswith(str(path)):
            raise
        raise ValueError(f"{path} {complaint}: {type(error).__name__}: {reason}") from error
