"""The fused engine's kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from build_cache import built, version_of, with_headers

ROOT = Path(__file__).parents[3]
CSRC = ROOT / "csrc"
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
SOURCES = [
    *sorted((CSRC / "mlp" / "simd").glob("*.cpp")),
    *sorted((CSRC / "mlp" / "cpu").glob("*.cpp")),
    Path(__file__).parents[1] / "mlp_random.cpp",
]
FLAGS = ["-std=c++20", "-O1", "-g1", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
FLAGS += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DFASTNODE_POISON"]


def compiled_into(folder):
    def run(*arguments):
        command = [COMPILER, *FLAGS, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    def compiled(source):
        return run(f"-I{CSRC}", "-c", source, "-o", folder / f"{source.stem}.o")

    # One after the other they take minutes.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        steps = list(pool.map(compiled, SOURCES))
    for step in steps:
        assert step.returncode == 0, step.stderr
    objects = [folder / f"{source.stem}.o" for source in SOURCES]
    linked = run(*objects, "-o", folder / "mlp_random")
    if "cannot find" in linked.stderr and "san" in linked.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert linked.returncode == 0, linked.stderr
    for each in objects:
        each.unlink()


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_random_solves_and_gradients_are_clean():
    inputs = [Path(__file__), *with_headers(SOURCES, [CSRC])]
    folder = built("sanitizers", inputs, [version_of(COMPILER)], compiled_into)
    # Blocks that wait for the next solve are reachable to the end.
    ran = subprocess.run([folder / "mlp_random"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
