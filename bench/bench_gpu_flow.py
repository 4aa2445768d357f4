"""Flow ops on a GPU: against the bandwidth of a copy, eager PyTorch and torch.compile.

The kernels of a training step are counted as eleven passes over a tensor: the interpolant reads two
and writes one, the loss with its gradient reads three and writes one, the backward pass reads two
and writes two. Inputs rotate among sets that together are several times as large as the L2 cache,
so that every pass goes to memory.
"""

from __future__ import annotations

import itertools
import statistics

import pytest
import torch
import torch.nn.functional as F
from flow_step import by_hand, kernels, opaque, ours, plain, step
from ratio import compare, seconds
from torch import Tensor

from fastnode.flow import Linear, flow_loss, linear_flow_loss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
SHAPES = [(65536, 512), (4096, 3072)]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PASSES = {"interpolant": 3, "loss": 4, "backward": 4}


def rotated(make, bytes_each: int):
    """Endlessly what ``make`` returns, from enough sets to outgrow the cache."""
    l2 = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 64 << 20)
    return itertools.cycle([make(i) for i in range(max(2, 1 + 4 * l2 // bytes_each))])


def batch(shape: tuple[int, int], dtype: torch.dtype, seed: int):
    generator = torch.Generator("cuda").manual_seed(seed)
    z0, z1, v = (torch.randn(shape, generator=generator, device="cuda").to(dtype) for _ in range(3))
    t = torch.rand(shape[0], generator=generator, device="cuda")
    return z0.requires_grad_(), z1.requires_grad_(), t, v


def copy_bandwidth() -> float:
    """Bytes read and written a second by a copy within the device."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    times = [seconds(lambda: target.copy_(source), 10) for _ in range(5)]
    return 2 * source.nbytes / statistics.median(times)


def near(got, want, dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    for a, b in zip(got, want, strict=True):
        size = b.double().abs().max().item()
        torch.testing.assert_close(a.double(), b.double(), rtol=8 * eps, atol=8 * eps * size)


shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


@dtypes
@shapes
def test_training_step(benchmark, shape, dtype):
    sets = [batch(shape, DTYPES[dtype], seed) for seed in range(3)]
    torch._dynamo.reset()

    def visible(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        return plain(a, b, t.to(a.dtype))

    def hidden(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        return plain(a, b, t.to(a.dtype), opaque)

    references = {
        "eager": visible,
        "compile": torch.compile(hidden, dynamic=False),
        "compile, field fused": torch.compile(visible, dynamic=False),
    }
    want = [x.clone() for x in step(visible, *sets[0][:3])]
    for function in (ours, references["compile"]):
        near(step(function, *sets[0][:3]), want, DTYPES[dtype])
    turns = itertools.cycle(sets)
    compare(
        benchmark,
        f"flow step, {dtype}",
        str(shape),
        lambda: step(ours, *next(turns)[:3]),
        {name: lambda f=f: step(f, *next(turns)[:3]) for name, f in references.items()},
        rounds=8,
    )


@dtypes
@shapes
def test_training_step_with_its_times(benchmark, shape, dtype):
    """As above, with the drawing of times and the rule for t = 0 in every contestant."""
    sets = [batch(shape, DTYPES[dtype], seed)[:2] for seed in range(3)]
    torch._dynamo.reset()

    def drawn(a: Tensor, b: Tensor, t: None) -> Tensor:
        _, zt, target = Linear().draw(a, b)
        return flow_loss(opaque(zt), target)

    def drawn_plainly(a: Tensor, b: Tensor, t: None) -> Tensor:
        time, chance = torch.rand(2, a.shape[0], device=a.device)
        return plain(a, b, torch.where(chance < 0.1, 0.0, time).to(a.dtype), opaque)

    references = {
        "eager": drawn_plainly,
        "compile": torch.compile(drawn_plainly, dynamic=False),
    }
    turns = itertools.cycle(sets)
    losses = [step(f, *sets[0], None)[0].item() for f in (drawn, *references.values())]
    assert max(losses) < 1.2 * min(losses)
    compare(
        benchmark,
        f"flow step with times, {dtype}",
        str(shape),
        lambda: step(drawn, *next(turns), None),
        {name: lambda f=f: step(f, *next(turns), None) for name, f in references.items()},
        rounds=8,
    )


@dtypes
@shapes
@torch.no_grad()
def test_kernels_reach_the_bandwidth_of_a_copy(benchmark, shape, dtype):
    kind = DTYPES[dtype]
    size = shape[0] * shape[1] * kind.itemsize
    sets = rotated(lambda i: [x.detach() for x in batch(shape, kind, i)], 3 * size)
    first = next(sets)
    z0, z1, t, v = (x.double() for x in first)
    near(kernels(*first), by_hand(z0, z1, t, v), kind)
    bandwidth = copy_bandwidth()
    compare(
        benchmark,
        f"flow kernels, {dtype}",
        str(shape),
        lambda: kernels(*next(sets)),
        {"eager": lambda: by_hand(*next(sets))},
        rounds=8,
        copy_bandwidth=bandwidth,
    )
    moved = sum(PASSES.values()) * size
    spent = 1e-6 * benchmark.extra_info["microseconds"]
    benchmark.extra_info["share_of_copy_bandwidth"] = moved / spent / bandwidth


def measure_op(benchmark, op: str, shape: tuple[int, int], dtype: str, subject: str) -> None:
    """Time of one op as a share of what a copy of as many bytes takes."""
    kind, ops = DTYPES[dtype], torch.ops.fastnode
    size = shape[0] * shape[1] * kind.itemsize

    def make(seed: int):
        z0, z1, t, v = (x.detach() for x in batch(shape, kind, seed))
        coef = ops.path_coefficients(t, 0, True)
        return z0, z1, coef, v, ops.interpolant(z0, z1, coef, False)[1]

    sets = rotated(make, 3 * size)

    def run():
        z0, z1, coef, v, stand_in = next(sets)
        if op == "interpolant":
            return ops.interpolant(z0, z1, coef, False)
        if op == "loss":
            return ops.flow_loss(v, stand_in, z0, z1, coef, True, True)
        return ops.interpolant_backward(z0, z1, coef, -1.0, True, True)

    bandwidth = copy_bandwidth()
    compare(benchmark, subject, str(shape), run, {}, rounds=8, copy_bandwidth=bandwidth)
    spent = 1e-6 * benchmark.extra_info["microseconds"]
    benchmark.extra_info["share_of_copy_bandwidth"] = PASSES[op] * size / spent / bandwidth


@dtypes
@shapes
@pytest.mark.parametrize("op", PASSES)
@torch.no_grad()
def test_each_op_reaches_the_bandwidth_of_a_copy(benchmark, op, shape, dtype):
    measure_op(benchmark, op, shape, dtype, f"{op}, {dtype}")


def last_layer(function, sets):
    """Loss and all gradients of a linear layer on a path; the layer's input needs one too."""

    def call():
        z0, z1, t, h, weight, bias = leaves = next(sets)
        for x in leaves:
            x.grad = None
        loss = function(h, weight, bias, z0, z1, t)
        loss.backward()
        return [loss.detach(), *(x.grad for x in (z0, z1, h, weight, bias))]

    return call


@dtypes
@shapes
def test_last_layer_and_loss(benchmark, shape, dtype):
    kind, hidden = DTYPES[dtype], 2048
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")

    def make(seed: int):
        z0, z1, t, _ = batch(shape, kind, seed)
        sizes = ((shape[0], hidden), (shape[1], hidden), (shape[1],))
        scales = (1.0, hidden**-0.5, 1.0)
        layer = (
            (scale * torch.randn(size, device="cuda")).to(kind).requires_grad_()
            for size, scale in zip(sizes, scales, strict=True)
        )
        return z0, z1, t, *layer

    def fused(h, weight, bias, z0, z1, t):
        _, target = Linear().interpolate(z0, z1, t, extrapolate=True)
        return linear_flow_loss(h, weight, bias, target)

    def apart(h, weight, bias, z0, z1, t):
        _, target = Linear().interpolate(z0, z1, t, extrapolate=True)
        return flow_loss(F.linear(h, weight, bias), target)

    def eager(h, weight, bias, z0, z1, t):
        return ((F.linear(h, weight, bias) - (z1 - z0)).float() ** 2).mean()

    torch._dynamo.reset()
    contestants = {
        "apart": apart,
        "eager": eager,
        "compile": torch.compile(eager, dynamic=False),
    }
    sets = rotated(make, 3 * shape[0] * shape[1] * kind.itemsize)
    first = itertools.repeat(next(sets))
    want = [x.clone() for x in last_layer(apart, first)()]
    got = last_layer(fused, first)()
    for ours_, theirs in zip(got, want, strict=True):
        size = theirs.double().abs().max().item()
        # Products of TF32 and of bfloat16 are rounded at the eighth to eleventh bit.
        torch.testing.assert_close(ours_.double(), theirs.double(), rtol=0.02, atol=0.02 * size)
    compare(
        benchmark,
        f"last layer and loss, {dtype}",
        str((*shape, hidden)),
        last_layer(fused, sets),
        {name: last_layer(function, sets) for name, function in contestants.items()},
        rounds=5,
    )
    torch.set_float32_matmul_precision(before)
