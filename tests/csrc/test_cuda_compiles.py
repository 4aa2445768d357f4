"""Every CUDA source compiles for the architectures we ship, on machines without a GPU too."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from build_cache import built, version_of, with_headers

CSRC = Path(__file__).parents[2] / "csrc"
HOME = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
NVCC = shutil.which("nvcc") or shutil.which(f"{HOME}/bin/nvcc")

#: Registers that a thread of each kernel may have. A multiprocessor holds five blocks of 256
#: threads with 48, four with 64 and three with 80.
REGISTERS = {
    "finish_kernel": 64,
    "pieces_kernel": 64,
    "rk_adjoint_kernel": 48,
    "rk_commit_kernel": 48,
    "rk_dense_kernel": 80,
    "rk_dense_rows_kernel": 48,
    "rk_stage_kernel": 48,
    "rk_stage_rows_kernel": 48,
    "short_rows_kernel": 80,
    # One warp or one thread in all.
    "rk_begin_kernel": 128,
    "rk_control_kernel": 128,
    "rk_first_kernel": 128,
    "rk_note_kernel": 128,
    "rk_place_kernel": 128,
    "rk_trial_kernel": 128,
    "set_condition_kernel": 64,
    # A processor holds one block of 512 threads with 128, and one of 256 with twice as many; of the
    # way back two blocks in float32, whose 128 the compiler is told of.
    "mlp_backward_kernel": 200,
    "mlp_per_sample_kernel": 168,
    "mlp_fixed_kernel": 128,
    "mlp_joint_kernel": 128,
    "mlp_pack_kernel": 48,
    "mlp_sum_gradients_kernel": 48,
}
#: Bytes of local memory: CUDA's sin and cos of numbers above 1e5 need a table there.
STACK = {
    "mlp_backward_kernel": 40,
    "mlp_per_sample_kernel": 40,
    "mlp_fixed_kernel": 40,
    "mlp_joint_kernel": 40,
}
_REPORT = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>sm_\d+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)
#: Kernels whose inner loop reads 16 bytes at once; those made for one element at a time have a 1 as
#: their first argument.
_WIDE = re.compile(
    r"\d(pieces|short_rows|rk_(stage|adjoint|dense|stage_rows|dense_rows|commit))_kernelI(?!Li1E)"
)
#: Sources whose layers may go to tensor cores, by both instructions.
TENSOR = {"backward", "solve_fixed", "solve_joint", "solve_per_sample"}
#: Those that nvcc needs two seconds at most for.
QUICKEST = {"graph_loop_cuda", "pack_weights"}
_MMA = re.compile(r"mma\.sync\.aligned\.(m8n8k4\.row\.col\.f64|m16n8k8\.row\.col\.f32\.tf32)")
_ENTRY = re.compile(r"\.entry (\w+)\((.*?)\n\}", re.DOTALL)
_LOAD = re.compile(r"ld\.global(?:\.nc)?\.(?:v4\.[bfu]32|v2\.[bfu]64)")


def compiled(source, folder):
    """Leaves the compiler's report and the PTX of both architectures."""
    command = [NVCC, "-c", str(source), "-o", str(folder / "out.o"), "-O3", "-std=c++17"]
    command += ["-I", str(CSRC), "-Werror", "all-warnings", "-Xcompiler", "-fPIC,-Wall,-Werror"]
    command += ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=sm_90"]
    command += ["-Xptxas", "-v", "--threads", "2", "--keep", "--keep-dir", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (folder / "report").write_text(result.stderr)
    for path in folder.iterdir():
        if path.suffix != ".ptx" and path.name != "report":
            path.unlink()


@pytest.mark.skipif(NVCC is None, reason="nvcc not found")
@pytest.mark.parametrize(
    "source",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem in QUICKEST else pytest.mark.slow)
        for path in sorted(CSRC.glob("**/*.cu"))
    ],
)
def test_compiles_for_sm80_and_sm90_within_its_budget(source):
    inputs = [Path(__file__), *with_headers([source], [CSRC])]
    folder = built(
        f"nvcc-{source.stem}", inputs, [version_of(NVCC)], functools.partial(compiled, source)
    )
    report = (folder / "report").read_text()
    reports = list(_REPORT.finditer(report))
    assert {each["arch"] for each in reports} == {"sm_80", "sm_90"}
    assert len(reports) == report.count("Compiling entry function")
    for each in reports:
        assert (each["stores"], each["loads"]) == ("0", "0"), each["name"]
        kernels = [kernel for kernel in REGISTERS if f"{len(kernel)}{kernel}" in each["name"]]
        assert len(kernels) == 1, f"{each['name']} has no budget"
        assert int(each["stack"]) <= STACK.get(kernels[0], 0), (each["name"], each["stack"])
        assert int(each["registers"]) <= REGISTERS[kernels[0]], (each["name"], each["registers"])
    code = "".join(path.read_text() for path in folder.glob("*.ptx"))
    assert len(set(_MMA.findall(code))) == (2 if source.stem in TENSOR else 0)
    bodies = dict(_ENTRY.findall(code))
    for each in reports:
        if _WIDE.search(each["name"]):
            assert _LOAD.search(bodies[each["name"]]), each["name"]
