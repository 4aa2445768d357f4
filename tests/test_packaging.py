"""What is installed: one top-level package, with or without a compiler, light to import."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from bench.imports import seconds

ROOT = Path(__file__).parent.parent
COPIED = ["csrc", "fastnode", "triton_kernels", "LICENSE", "MANIFEST.in", "README.md"]
COPIED += ["CHANGELOG.md", "pyproject.toml", "setup.py"]


def run(*command, cwd, **environment):
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the sources without anything that was built."""
    folder = tmp_path_factory.mktemp("source")
    for name in COPIED:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("*.so", "__pycache__", "triton_kernels")
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel_without_compiler(source):
    out = source / "dist"
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    run(*pip, "-w", str(out), ".", cwd=source, CXX="no-such-compiler")
    (wheel,) = out.glob("*.whl")
    return wheel


def test_the_wheel_holds_one_top_level_package(wheel_without_compiler):
    names = zipfile.ZipFile(wheel_without_compiler).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"fastnode"}
    assert {"fastnode/py.typed", "fastnode/triton_kernels/__init__.py"} <= set(names)
    # Every package of the tree is listed in pyproject.toml.
    packages = {str(p.parent.relative_to(ROOT)) for p in ROOT.glob("fastnode/**/__init__.py")}
    packages.discard("fastnode/triton_kernels")
    assert packages <= {name.rpartition("/")[0] for name in names}


def test_without_a_compiler_the_install_runs_on_the_reference_and_says_why(
    wheel_without_compiler, tmp_path
):
    venv.create(tmp_path / "venv", system_site_packages=False, with_pip=False)
    site = next((tmp_path / "venv" / "lib").glob("python*")) / "site-packages"
    zipfile.ZipFile(wheel_without_compiler).extractall(site)
    # torch and the rest come from the environment of the tests, fastnode from the wheel.
    others = os.pathsep.join(p for p in sys.path if p.endswith("site-packages"))
    python = str(tmp_path / "venv" / "bin" / "python")
    program = """
import torch, fastnode, fastnode.extension as extension
from fastnode.flow import Linear, flow_loss
assert not extension.AVAILABLE, fastnode.__file__
z = torch.randn(4, 3, requires_grad=True)
zt, target = Linear().interpolate(z, torch.zeros(4, 3), torch.rand(4))
flow_loss(zt, target).backward()
y = fastnode.odeint(lambda t, y: -y, torch.ones(2), torch.tensor([0.0, 1.0]))
assert torch.allclose(y[-1], torch.full((2,), 0.36788), atol=1e-4), y
print(extension.REASON)
"""
    path = os.pathsep.join([str(site), others])
    printed = run(python, "-c", program, cwd=tmp_path, PYTHONPATH=path)
    assert "no C++ compiler was found" in printed
    assert "no C++ compiler" in run(python, "-m", "fastnode", "info", cwd=tmp_path, PYTHONPATH=path)


def test_an_extension_that_does_not_load_is_an_error(wheel_without_compiler, tmp_path):
    zipfile.ZipFile(wheel_without_compiler).extractall(tmp_path)
    (tmp_path / "fastnode" / "_C.abi3.so").write_bytes(b"no shared object")
    with pytest.raises(subprocess.CalledProcessError) as error:
        run(sys.executable, "-c", "import fastnode.flow", cwd=tmp_path)
    assert "fastnode._C is there but does not load" in error.value.stderr


def test_the_source_distribution_has_everything_to_build(source):
    run(sys.executable, "setup.py", "-q", "sdist", cwd=source)
    (archive,) = (source / "dist").glob("*.tar.gz")
    import tarfile

    names = {n.partition("/")[2] for n in tarfile.open(archive).getnames()}
    tracked = [p for p in (ROOT / "csrc").rglob("*") if p.is_file()]
    assert {str(p.relative_to(ROOT)) for p in tracked} <= names
    assert {"setup.py", "pyproject.toml", "triton_kernels/interpolant.py"} <= names


def test_importing_fastnode_pulls_in_neither_triton_nor_matplotlib():
    heavy = "print(sorted({'triton', 'matplotlib', 'sklearn'} & {*sys.modules}))"
    ours = run(sys.executable, "-c", f"import sys, fastnode; {heavy}", cwd=ROOT)
    assert ours == run(sys.executable, "-c", f"import sys, torch; {heavy}", cwd=ROOT)


def test_importing_fastnode_costs_little_beside_torch():
    seconds()  # writes the bytecode
    shares = [ours / torchs for torchs, ours in (seconds() for _ in range(2))]
    # 50 ms where torch takes a second (bench/results/cpu/imports.json).
    assert min(shares) < 0.06
