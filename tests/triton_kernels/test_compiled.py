"""Compiles the kernels ahead of time, without a GPU, and reads the machine code."""

import os
import re
import subprocess

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from fastnode.triton_kernels import flow_loss, interpolant, tiling  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1",
        reason="the interpreter takes the compiler's place",
    ),
]
on_both_parts = pytest.mark.parametrize("capability", [80, 90], ids=["sm_80", "sm_90"])

SCALARS = {"sign", "grad_scale", "loss_scale", "zero_probability"}
ACCUMULATED = {"coef", "partials", "loss", "g", "t"}
ITEMSIZE = {"fp32": 4, "bf16": 2, "fp16": 2, "fp64": 8}

# Kernel, arguments that are None, and how many tensors of states it reads and writes.
TILED = {
    "interpolant": (interpolant.interpolant_fwd_kernel, {"ut"}, 2, 1),
    "interpolant and velocity": (interpolant.interpolant_fwd_kernel, set(), 2, 2),
    "backward": (interpolant.interpolant_bwd_kernel, set(), 2, 2),
    "backward of the interpolant": (interpolant.interpolant_bwd_kernel, {"g_u"}, 1, 2),
    "backward of the velocity to z0": (interpolant.interpolant_bwd_kernel, {"g_zt", "dz1"}, 1, 1),
    "loss": (flow_loss.flow_loss_fwd_kernel, {"grad"}, 3, 0),
    "loss and gradient": (flow_loss.flow_loss_fwd_kernel, set(), 3, 1),
}


def build(kernel, dtype, capability, sizes, constants, aligned):
    """Compiles as a launch would: a size of 1 is a constant, multiples of 16 are known as such."""
    constants = constants | {name: 1 for name, size in sizes.items() if size == 1}

    names = kernel.arg_names

    def type_of(name):
        if name in constants:
            return "constexpr"
        if name in sizes:
            return "i32" if sizes[name] < 2**31 else "i64"
        if name in ("seed", "inside"):
            return "*i64" if name == "seed" else "*i32"
        if name in SCALARS:
            return kernel.params[names.index(name)].annotation_type
        return "*fp32" if name in ACCUMULATED and dtype != "fp64" else f"*{dtype}"

    signature = {name: type_of(name) for name in names}
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, (name, kind) in enumerate(signature.items())
        if (kind.startswith("*") and aligned) or (kind[0] == "i" and sizes[name] % 16 == 0)
    }
    source = ASTSource(
        kernel, signature, {(names.index(k),): v for k, v in constants.items()}, attributes
    )
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": tiling.WARPS})


def build_tiled(case, dtype, capability, B, D, aligned=True):
    kernel, absent, _, _ = TILED[case]
    constants = tiling.choose_tiling(B, D, ITEMSIZE[dtype])._asdict() | dict.fromkeys(absent)
    return build(kernel, dtype, capability, {"B": B, "D": D}, constants, aligned)


def disassemble(compiled, tmp_path):
    """Registers and memory instructions; fails on spills, which need a stack."""
    (tmp_path / "kernel.cubin").write_bytes(compiled.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", "kernel.cubin"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    text = run.stdout + run.stderr
    registers, stack = (int(re.findall(rf"{key}:(\d+)", text)[0]) for key in ("REG", "STACK"))
    instructions = re.findall(r"\b(?:LDG|STG|LDL|STL)\b[.\w]*", text)
    assert stack == 0
    assert not [i for i in instructions if i.startswith(("LDL", "STL"))]
    return registers, instructions


@pytest.mark.parametrize(
    "kernel",
    [
        interpolant.interpolant_bwd_kernel,
        flow_loss.flow_loss_fwd_kernel,
        flow_loss.sum_partials_kernel,
    ],
    ids=lambda kernel: kernel.__name__,
)
def test_scalars_arrive_in_double_precision(kernel):
    scalars = {p.name: p.annotation_type for p in kernel.params if p.name in SCALARS}
    assert set(scalars.values()) == {"fp64"}


@on_both_parts
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
@pytest.mark.parametrize("inside", ["checked", "any"])
def test_coefficients_compile(inside, dtype, capability, tmp_path):
    constants = {"KIND": 1, "BLOCK": interpolant.BLOCK}
    if inside == "any":
        constants["inside"] = None
    sizes = {"B": 1000}
    kernel = build(interpolant.path_coefficients_kernel, dtype, capability, sizes, constants, True)
    assert kernel.asm["cubin"]


def count(instructions, name, width=""):
    return sum(i.startswith(name) and i.endswith(width) for i in instructions)


def check_vectors(case, dtype, capability, B, D, tmp_path):
    _, _, reads, writes = TILED[case]
    registers, instructions = disassemble(build_tiled(case, dtype, capability, B, D), tmp_path)
    # So that eight programs fit on a multiprocessor, as MAX_PROGRAMS takes for granted.
    assert registers <= 64
    partial_sums = 1 if "loss" in case else 0
    assert count(instructions, "STG") == writes * tiling.VECTORS + partial_sums
    assert count(instructions, "STG", ".128") == writes * tiling.VECTORS
    # A load of several coefficients may be as wide.
    assert count(instructions, "LDG", ".128") >= reads * tiling.VECTORS


@on_both_parts
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("case", TILED)
def test_aligned_states_move_in_16_byte_vectors(case, dtype, capability, tmp_path):
    check_vectors(case, dtype, capability, 4096, 3072, tmp_path)


@pytest.mark.parametrize("case", ["interpolant", "backward", "loss and gradient"])
@pytest.mark.parametrize("B, D, dtype", [(65536, 512, "bf16"), (1000, 392, "bf16"), (7, 4, "fp32")])
def test_widths_need_be_multiples_of_16_bytes_only(B, D, dtype, case, tmp_path):
    check_vectors(case, dtype, 90, B, D, tmp_path)


@pytest.mark.parametrize("case", ["interpolant", "backward", "loss and gradient"])
def test_columns_of_one_move_in_vectors_along_the_batch(case, tmp_path):
    _, instructions = disassemble(build_tiled(case, "fp32", 90, 65536, 1), tmp_path)
    assert count(instructions, "STG", ".128") == TILED[case][3] * tiling.VECTORS


@pytest.mark.parametrize("case", ["interpolant and velocity", "backward", "loss and gradient"])
@pytest.mark.parametrize(
    "B, D, dtype",
    [(1000, 101, "fp32"), (1000, 101, "bf16"), (1, 1, "fp16"), (1, 2**32 + 5, "fp64")],
)
def test_states_without_alignment_spill_nothing(B, D, dtype, case, tmp_path):
    disassemble(build_tiled(case, dtype, 80, B, D, aligned=False), tmp_path)


@on_both_parts
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_drawing_times_takes_no_bandwidth_from_states(dtype, capability, tmp_path):
    B, D = 4096, 3072
    constants = tiling.choose_tiling(B, D, ITEMSIZE[dtype])._asdict() | {"KIND": 0}
    kernel = interpolant.sampled_interpolant_fwd_kernel
    compiled = build(kernel, dtype, capability, {"B": B, "D": D}, constants, aligned=True)
    registers, instructions = disassemble(compiled, tmp_path)
    assert registers <= 64
    assert count(instructions, "LDG", ".128") == 2 * tiling.VECTORS
    assert count(instructions, "STG", ".128") >= tiling.VECTORS


@on_both_parts
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_scaling_moves_16_byte_vectors(dtype, capability, tmp_path):
    constants = {"BLOCK": flow_loss.scale_block(ITEMSIZE[dtype])}
    sizes = {"n": 4096}
    compiled = build(flow_loss.scale_kernel, dtype, capability, sizes, constants, aligned=True)
    registers, instructions = disassemble(compiled, tmp_path)
    assert registers <= 64
    assert count(instructions, "LDG", ".128") == tiling.VECTORS
    assert count(instructions, "STG", ".128") == tiling.VECTORS


@on_both_parts
@pytest.mark.parametrize("n", [1, flow_loss.MAX_PROGRAMS])
def test_the_sum_of_partial_sums_spills_nothing(n, capability, tmp_path):
    constants = {"BLOCK": flow_loss.SLOTS}
    kernel = flow_loss.sum_partials_kernel
    disassemble(build(kernel, "fp32", capability, {"n": n}, constants, aligned=True), tmp_path)
