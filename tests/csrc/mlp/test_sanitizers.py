"""The fused engine's kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
COMPILER = shutil.which(os.environ.get("CXX", "c++"))


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_random_solves_and_gradients_are_clean(tmp_path):
    compiler = COMPILER
    assert compiler is not None
    sources = [
        *sorted((ROOT / "csrc" / "mlp" / "simd").glob("*.cpp")),
        *sorted((ROOT / "csrc" / "mlp" / "cpu").glob("*.cpp")),
        Path(__file__).parents[1] / "mlp_random.cpp",
    ]
    program = tmp_path / "mlp_random"
    flags = ["-std=c++20", "-O1", "-g1", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
    flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DFASTNODE_POISON"]

    def run(*arguments):
        return subprocess.run([compiler, *flags, *arguments], capture_output=True, text=True)

    def compiled(source):
        return run(
            f"-I{ROOT / 'csrc'}", "-c", str(source), "-o", str(tmp_path / source.stem) + ".o"
        )

    # One after the other they take minutes.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        steps = list(pool.map(compiled, sources))
    for step in steps:
        assert step.returncode == 0, step.stderr
    built = run(*(f"{tmp_path / source.stem}.o" for source in sources), "-o", str(program))
    if "cannot find" in built.stderr and "san" in built.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert built.returncode == 0, built.stderr
    # Blocks that wait for the next solve are reachable to the end.
    ran = subprocess.run([program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
