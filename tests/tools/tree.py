"""Copies of the project in which something may be changed or built otherwise."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def copy_tree(into: Path) -> None:
    """What git knows or would take, and the extension."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    built = [str(path.relative_to(ROOT)) for path in (ROOT / "fastnode").glob("_C*.so")]
    for name in (*listed.split("\0"), *built):
        if name and (ROOT / name).is_file():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, into / name)
    (into / "fastnode/triton_kernels").symlink_to("../triton_kernels")


def build(tree: Path, **variables: str) -> None:
    """The extension, with these environment variables."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    environment = os.environ | {"FASTNODE_CUDA": "0"} | variables
    subprocess.run(command, cwd=tree, env=environment, check=True)


if __name__ == "__main__":
    copy_tree(Path(sys.argv[1]).resolve())
