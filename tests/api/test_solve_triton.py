"""solve_triton where no kernel runs; the rest is in tests/triton_kernels/test_trajectories.py."""

import os

import pytest
import torch

import fastnode
from fastnode.api import solve_triton
from fastnode.ops import dispatch


def test_triton_must_be_installed(monkeypatch):
    monkeypatch.setattr(solve_triton, "has_triton", lambda: False)
    with pytest.raises(ImportError, match="needs Triton"):
        fastnode.solve_triton(None, torch.ones(1, 1), torch.tensor([0.0, 1.0]))


@pytest.mark.skipif(
    not dispatch.has_triton() or os.environ.get("TRITON_INTERPRET") == "1",
    reason="needs Triton's compiler",
)
def test_states_on_the_cpu_need_the_interpreter():
    import triton

    @triton.jit
    def decay(t, y):
        return (-y,)

    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        fastnode.solve_triton(decay, torch.ones(1, 1), torch.tensor([0.0, 1.0]))
