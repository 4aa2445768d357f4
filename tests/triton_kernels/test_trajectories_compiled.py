"""Compiles the kernel of trajectories as a launch would, without a GPU; reads the machine code."""

import os
import re
import subprocess

import pytest
import torch

triton = pytest.importorskip("triton")

from fastnode.api.solve_triton import plain_method, plain_numbers  # noqa: E402
from fastnode.control.controllers import CONTROLLERS  # noqa: E402
from fastnode.tableaus import METHODS  # noqa: E402
from fastnode.triton_kernels import trajectories  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1",
        reason="the interpreter takes the compiler's place",
    ),
]


@triton.jit
def lorenz(t, x, y, z, sigma, rho, beta):
    return sigma * (y - x), x * (rho - z) - y, x * y - beta * z


@triton.jit
def forced(t, x, v):
    return v, t * t - x


def compiled(field, width, parameters, dtype, times, method="tsit5", controller="I"):
    """The kernel that ``solve_trajectories`` would launch for a million trajectories."""
    plain = plain_method(METHODS[method])
    types = [dtype, torch.float64, dtype, dtype, torch.int64, torch.int8, torch.float64]
    return trajectories.solve_kernel.warmup(
        *types,
        1_000_000,
        times,
        1e-6,
        1e-6,
        0.0,
        100_000,
        field,
        width,
        parameters,
        1,
        True,
        times > 2,
        plain.c,
        plain.a,
        (plain.error,),
        plain.dense,
        plain.order,
        tuple(plain_numbers(CONTROLLERS[controller])),
        trajectories.LANES,
        num_warps=trajectories.WARPS,
        grid=(1,),
    )


def disassemble(kernel, tmp_path):
    (tmp_path / "kernel.cubin").write_bytes(kernel.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", "kernel.cubin"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    text = run.stdout + run.stderr
    return int(re.findall(r"REG:(\d+)", text)[0]), set(re.findall(r"\b[A-Z][A-Z0-9]+\b", text))


# Of the 32 programs that fit on a multiprocessor at once each thread may have 64 registers.
@pytest.mark.parametrize(
    "dtype, times, most",
    [
        (torch.float32, 2, 64),
        (torch.float32, 9, 96),
        (torch.float64, 2, 96),
        (torch.float64, 9, 128),
    ],
    ids=str,
)
def test_trajectories_stay_in_registers(dtype, times, most, part, tmp_path):
    registers, words = disassemble(compiled(lorenz, 3, 3, dtype, times), tmp_path)
    assert registers <= most
    # No spills, nothing exchanged between warps.
    assert not words & {"LDL", "STL", "LDS", "STS", "BAR"}


@pytest.mark.parametrize("part", [90], indirect=True)
@pytest.mark.parametrize("method, controller", [("dopri5", "PID"), ("bosh3", "PI")])
def test_other_methods_fields_and_controllers_compile(method, controller, part, tmp_path):
    kernel = compiled(forced, 2, 0, torch.float32, 3, method, controller)
    registers, words = disassemble(kernel, tmp_path)
    assert registers <= 96 and not words & {"LDL", "STL"}


@pytest.mark.parametrize("part", [90], indirect=True)
def test_coefficients_match_the_tableau_in_float64(part):
    text = compiled(lorenz, 3, 3, torch.float64, 3).asm["ttir"]
    found = {
        float(x) for x in re.findall(r"dense<(-?[\d.]+(?:[eE][+-]?\d+)?)> : tensor<32xf64>", text)
    }
    method = plain_method(METHODS["tsit5"])
    rows = (*method.a, method.error, *method.dense)
    assert {x for row in rows for x in row if x not in (0.0, 1.0)} <= found | {-x for x in found}
