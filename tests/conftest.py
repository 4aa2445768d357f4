"""Names of cases, and how many random programs are tried.

Random programs are the same in each run: `make test` tries a few of each kind, `make test-all` all,
and `HYPOTHESIS_PROFILE=explore` looks for new ones.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Before cuBLAS is loaded: tests that poison memory do it by torch's deterministic mode.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# Not the user's own folder; kept like all that tests compile.
KEPT = Path(__file__).parents[1] / "out" / "tests" / "fields"
os.environ.setdefault("FASTNODE_CACHE_DIR", str(KEPT))

REPEATED = settings(derandomize=True, database=None, deadline=None)
settings.register_profile("fast", REPEATED, max_examples=5)
settings.register_profile("full", REPEATED, max_examples=60)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "full"))


@pytest.fixture
def by_code(monkeypatch):
    """The problems of joint solves that the fused engine runs."""
    # Not where tests are collected: they may have set what the import looks at.
    from fastnode.engines.fused import joint

    solved = []

    def integrate(problem, request, run=joint.integrate):
        solved.append(problem)
        return run(problem, request)

    monkeypatch.setattr(joint, "integrate", integrate)
    return solved


def case_name(value: object) -> str:
    """The same in each process: what runs the tests with several workers compares the names."""
    if isinstance(value, dict):
        return ",".join(f"{key}={case_name(each)}" for key, each in value.items())
    if isinstance(value, torch.Tensor):
        return f"tensor{list(value.shape)}"
    if callable(value):
        return getattr(value, "__name__", type(value).__name__).strip("<>")
    return str(value)


def pytest_make_parametrize_id(val: object) -> str | None:
    return case_name(val) if isinstance(val, dict) else None
