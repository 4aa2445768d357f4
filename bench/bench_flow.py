"""The flow part of a training step against plain PyTorch and torch.compile.

The part is: interpolant, a field that is one multiplication, loss, and backward to z0 and z1, all
through autograd. Two compiled references stand beside each other:

* ``compile``: the field is opaque, as every field of matrix products or convolutions is to the
  compiler: what comes before and after it is compiled, it itself is not fused with them;
* ``compile, field fused``: the compiler sees that the field is one multiplication, fuses it with
  both sides, and never stores z_t, v or their gradients. It moves 6 tensors where eager code moves
  at least 15 (11 of ours and 4 of the field). No real field allows that.

In a graph of torch.compile ours is plain formulas too, which the compiler fuses with the field:
``flow step, compiled`` compares that with the compiled references and with our eager step.

``kernels`` calls the ops without autograd: interpolant, loss with gradient, and the one backward
pass. Its reference is the same plain PyTorch training step as above; ``plain, no autograd`` is the
same arithmetic written by hand.
"""

from __future__ import annotations

import pytest
import torch
from flow_step import DEVICE, batch, by_hand, kernels, opaque, ours, plain, plain_mse, step
from ratio import compare

SHAPES = [(128, 64), (1024, 512), (256, 3072), (64, 65536)]


def agree(got, want) -> None:
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_training_step(benchmark, shape):
    inputs = batch(shape)
    torch._dynamo.reset()
    references = {
        "plain": plain,
        "plain, lerp and mse_loss": plain_mse,
        "compile": torch.compile(lambda a, b, t: plain(a, b, t, opaque), dynamic=False),
        "compile, field fused": torch.compile(plain, dynamic=False),
    }
    want = [x.clone() for x in step(plain, *inputs)]
    for function in (ours, *references.values()):
        agree(step(function, *inputs), want)
    ratios = compare(
        benchmark,
        "flow step",
        str(shape),
        lambda: step(ours, *inputs),
        {name: lambda f=f: step(f, *inputs) for name, f in references.items()},
    )
    assert all(ratio > 0 for ratio in ratios.values())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_compiled_training_step(benchmark, shape):
    inputs = batch(shape)
    torch._dynamo.reset()
    mine = torch.compile(ours, dynamic=False)
    references = {
        "compile, field fused": torch.compile(plain, dynamic=False),
        "compile, lerp and mse_loss": torch.compile(plain_mse, dynamic=False),
        "fastnode, eager": ours,
    }
    want = [x.clone() for x in step(plain, *inputs)]
    for function in (mine, *references.values()):
        agree(step(function, *inputs), want)
    ratios = compare(
        benchmark,
        "flow step, compiled",
        str(shape),
        lambda: step(mine, *inputs),
        {name: lambda f=f: step(f, *inputs) for name, f in references.items()},
    )
    assert all(ratio > 0 for ratio in ratios.values())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_alone(benchmark, shape):
    z0, z1, t = batch(shape)
    x0, x1 = z0.detach(), z1.detach()
    v = torch.randn(shape, device=DEVICE)
    spare = [torch.empty_like(x0) for _ in range(6)]
    half = x0.numel() // 2

    def copies():
        """Eleven passes over one tensor, as the kernels read and write: five copies and a half."""
        for to in spare[:5]:
            to.copy_(x0)
        spare[5].view(-1)[:half].copy_(x0.view(-1)[:half])

    agree(kernels(x0, x1, t, v), by_hand(x0, x1, t, v))
    ratios = compare(
        benchmark,
        "flow kernels",
        str(shape),
        lambda: kernels(x0, x1, t, v),
        {
            "plain": lambda: step(plain, z0, z1, t),
            "plain, no autograd": lambda: by_hand(x0, x1, t, v),
            "copies of as many bytes": copies,
        },
    )
    assert all(ratio > 0 for ratio in ratios.values())
