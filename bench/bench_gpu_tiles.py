"""Tile shapes of the flow kernels on the GPU at hand: what WARPS and VECTORS of tiling.py go by."""

from __future__ import annotations

import pytest
import torch
from bench_gpu_flow import PASSES, dtypes, measure_op, pytestmark, shapes  # noqa: F401

pytest.importorskip("triton")
from fastnode.triton_kernels import flow_loss, interpolant, tiling  # noqa: E402


@dtypes
@shapes
@pytest.mark.parametrize("op", PASSES)
@pytest.mark.parametrize("vectors", [1, 2, 4])
@pytest.mark.parametrize("warps", [2, 4, 8])
@torch.no_grad()
def test_tile_shape(benchmark, monkeypatch, warps, vectors, op, shape, dtype):
    for module in (tiling, flow_loss, interpolant):
        monkeypatch.setattr(module, "WARPS", warps)
        monkeypatch.setattr(module, "VECTORS", vectors, raising=False)
    measure_op(benchmark, op, shape, dtype, f"{op}, {dtype}, {warps} x {vectors}")
