"""Compiles the products of linear_flow_loss as launches would, without a GPU; reads the code."""

import os
import re
import subprocess

import pytest
import torch

triton = pytest.importorskip("triton")

from fastnode.triton_kernels import linear_flow_loss as module  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1",
        reason="the interpreter takes the compiler's place",
    ),
]
SHAPE = (65536, 512, 2048)
UNITS = {80: "HMMA", 90: "HGMMA"}


class Compiled(Exception):
    """Instead of a launch."""


@pytest.fixture
def launched(part, monkeypatch, tmp_path):
    """Calls a launcher and returns the words of the machine code of the kernel that it starts."""

    def call(kernel, launcher, *arguments):
        class Launch:
            def __getitem__(self, grid):
                def run(*args, **options):
                    raise Compiled(kernel.warmup(*map(kind, args), **options, grid=grid))

                return run

        def kind(x):
            return x.dtype if isinstance(x, torch.Tensor) else x

        monkeypatch.setattr(module, kernel.__name__, Launch())
        with pytest.raises(Compiled) as caught:
            launcher(*arguments)
        (tmp_path / "kernel.cubin").write_bytes(caught.value.args[0].asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "-sass", "kernel.cubin"]
        text = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return re.findall(r"\b(?:LDG|STG|LDGSTS|LDL|STL|HG?MMA)\b[.\w]*", text.stdout)

    return call


def check(words, unit, stored):
    assert not [word for word in words if word.startswith(("LDL", "STL"))]
    assert any(word.startswith(unit) for word in words)
    # The factors go to shared memory in 16 bytes, past registers, while products are computed.
    copies = [word for word in words if word.startswith("LDGSTS")]
    assert copies and all(word.endswith(".128") for word in copies)
    stores = [word for word in words if word.startswith("STG")]
    assert len([word for word in stores if word.endswith(".128")]) >= len(stores) - stored


def test_products_of_16_bits_use_the_matrix_units(launched, part):
    B, D, K = SHAPE
    kind = torch.bfloat16
    h, z = torch.empty(B, K, dtype=kind), torch.empty(B, D, dtype=kind)
    weight, bias, coef = torch.empty(D, K, dtype=kind), z[0].clone(), torch.empty(4, B)
    forward = module.linear_flow_loss_fwd_kernel
    words = launched(
        forward, module.linear_flow_loss, h, weight, bias, z, z, coef, 1.0, 2.0, True, "ieee"
    )
    # Besides the residual a program writes one sum.
    check(words, UNITS[part], 1)
    ends = [word for word in words if word.startswith("LDG") and word.endswith("EF.128")]
    assert len(ends) == 2 * module.TILE**2 * 2 // 16 // (32 * module.PRODUCT_WARPS)
    product = module.product_kernel
    check(launched(product, module.input_gradient, z, weight, "ieee"), UNITS[part], 0)
    check(launched(product, module.weight_gradient, z, h, True, "ieee"), UNITS[part], 1)


def test_float32_spills_nothing(launched, part):
    B, D, K = SHAPE
    h, z, weight, coef = (torch.empty(s) for s in ((B, K), (B, D), (D, K), (4, B)))
    forward = module.linear_flow_loss_fwd_kernel
    words = launched(
        forward, module.linear_flow_loss, h, weight, None, z, z, coef, 1.0, 2.0, True, "tf32"
    )
    check(words, UNITS[part], 1)
