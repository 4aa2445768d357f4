"""Files that survive a kill: atomic writes, and checkpoints that are read without running code."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import struct
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

FORMAT = "fastnode training checkpoint, version 1"
#: What a checkpoint holds. A dict whose only key is a type describes any number of entries.
LAYOUT = {
    "format": str,
    "config": {str: object},
    "step": int,
    "finished": bool,
    "model": {str: object},
    "optimizer": {"state": {int: {str: object}}, "param_groups": list},
    "best": {"value": float, "step": int, "model": {str: object}},
    "history": [{str: (int, float)}],
    "interval": {"steps": int, "seconds": float, "nfe": int},
    "losses": {str: torch.Tensor},
}
#: What each row of the history has, beside the parts of the loss.
COLUMNS = {"step", "seconds", "samples_per_second", "nfe_per_step", "total"}
#: How deep dicts and lists lie in each other, the optimiser's state being deepest.
DEPTH = 5

#: The restricted unpickler meets a malformed stream with whatever its own code happens to raise.
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
    """Writes a checkpoint with the entries of `FIELDS`, atomically."""
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
    # torch's older formats are not ours; their loader is left unreached.
    if not data.startswith(b"PK\x03\x04"):
        raise ValueError(f"{path} is damaged or not a checkpoint: not a zip archive")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except MALFORMED as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{path} is damaged or not a checkpoint: {type(error).__name__}: {reason}"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} is not a {FORMAT}")
    wrong = _odd(state) or _mismatch(state, LAYOUT, "checkpoint") or _contradiction(state)
    if wrong:
        raise ValueError(f"{path} is not a valid checkpoint: {wrong}")
    return state


def _odd(value: Any, depth: int = 0) -> str | None:
    """What `value` holds that no run of ours writes, or None."""
    if depth > DEPTH:
        return f"it is nested more than {DEPTH} deep"
    if isinstance(value, dict):
        return _odd([*value, *value.values()], depth)
    if isinstance(value, (list, tuple)):
        return _first(_odd(item, depth + 1) for item in value)
    if isinstance(value, torch.Tensor):
        dense = value.layout == torch.strided and value.device.type == "cpu"
        plain = dense and type(value) is torch.Tensor and not value.requires_grad
        return None if plain else "it holds a tensor that is not a plain one"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "it holds a number of more than 64 bits"
    known = value is None or isinstance(value, (str, int, float))
    return None if known else f"it holds a {type(value).__name__}"


def _contradiction(state: dict[str, Any]) -> str | None:
    """What in a state of the right layout no run can have led to, or None."""
    interval, losses = state["interval"], state["losses"]
    if any(not row.keys() >= COLUMNS for row in state["history"]):
        return "a row of checkpoint.history lacks columns"
    if any(each.dim() > 0 or not each.is_floating_point() for each in losses.values()):
        return "checkpoint.losses must be numbers"
    begun = 0 < interval["steps"] <= state["step"] and interval["seconds"] > 0 and "total" in losses
    if not begun and (interval["steps"] != 0 or losses):
        return "checkpoint.interval and checkpoint.losses contradict each other"
    return None


def _mismatch(value: Any, layout: Any, name: str) -> str | None:
    """What in `value` is not as `layout` says, or None."""
    if isinstance(layout, list):
        if not isinstance(value, list):
            return f"{name} is no list"
        return _first(_mismatch(item, layout[0], f"{name}[]") for item in value)
    if not isinstance(layout, dict):
        return None if isinstance(value, layout) else f"{name} is a {type(value).__name__}"
    if not isinstance(value, dict):
        return f"{name} is no dict"
    key = next(iter(layout))
    if isinstance(key, type):
        if not all(isinstance(each, key) for each in value):
            return f"{name} has a key that is no {key.__name__}"
        return _first(_mismatch(each, layout[key], f"{name}[]") for each in value.values())
    if value.keys() != layout.keys():
        return f"{name} has the entries {sorted(map(str, value))}"
    return _first(_mismatch(value[each], layout[each], f"{name}.{each}") for each in layout)


def _first(found: Iterable[str | None]) -> str | None:
    return next((each for each in found if each is not None), None)
