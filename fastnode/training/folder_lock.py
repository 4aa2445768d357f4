"""One run in a folder at a time."""

from __future__ import annotations

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None


class FolderLock:
    """Keeps other runs out of a folder until it is released, or its process ends, however it does.

    The folder itself is locked: no file is left behind by a run that was killed. A file system
    without locks, as some are that several machines share, keeps nobody out.

    Raises:
        ValueError: another run has the folder.
        OSError: there is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor: int | None = None
        if fcntl is None:
            return
        self._descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.release()
            raise ValueError(f"{folder} is in use by another run; choose another folder") from error
        except OSError:
            self.release()

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        self.release()
