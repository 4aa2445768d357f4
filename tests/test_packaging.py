"""What is installed: one top-level package, with or without a compiler, light to import."""

import ast
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from bench.imports import seconds

ROOT = Path(__file__).parent.parent
COPIED = ["csrc", "fastnode", "triton_kernels", "LICENSE", "MANIFEST.in", "README.md"]
COPIED += ["CHANGELOG.md", "pyproject.toml", "setup.py"]


PACKAGES = sorted(path.parent.relative_to(ROOT) for path in ROOT.glob("fastnode/**/__init__.py"))


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


@pytest.fixture(scope="module")
def sdist(source):
    run(sys.executable, "setup.py", "-q", "sdist", cwd=source, CXX="no-such-compiler")
    (archive,) = (source / "dist").glob("*.tar.gz")
    return archive


def test_the_wheel_holds_one_top_level_package(wheel_without_compiler):
    names = zipfile.ZipFile(wheel_without_compiler).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"fastnode"}
    assert {"fastnode/py.typed", "fastnode/triton_kernels/__init__.py"} <= set(names)
    # Every package of the tree is listed in pyproject.toml.
    packages = {str(p.parent.relative_to(ROOT)) for p in ROOT.glob("fastnode/**/__init__.py")}
    packages.discard("fastnode/triton_kernels")
    assert packages <= {name.rpartition("/")[0] for name in names}


def test_install_without_a_compiler_runs_on_the_reference(wheel_without_compiler, tmp_path):
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


def test_sdist_holds_what_is_built_and_nothing_else(source, sdist):
    with tarfile.open(sdist) as archive:
        names = {each.name.partition("/")[2] for each in archive if each.isfile()}
    kept = (source / part for part in ("csrc", "fastnode", "triton_kernels"))
    wanted = {str(p.relative_to(source)) for part in kept for p in part.rglob("*.*") if p.is_file()}
    assert {name for name in names if "egg-info" not in name} == wanted | {
        *("CHANGELOG.md", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md"),
        *("pyproject.toml", "setup.cfg", "setup.py"),
    }


@pytest.mark.slow
def test_a_wheel_made_again_elsewhere_has_the_same_bytes(wheel_without_compiler, sdist, tmp_path):
    again = []
    for place in ("here", "there"):
        out = tmp_path / place
        out.mkdir()
        pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-index", "--no-deps"]
        pip += ["--no-build-isolation", "-w", str(out), str(sdist)]
        run(*pip, cwd=out, CXX="no-such-compiler", SOURCE_DATE_EPOCH="1700000000")
        again.append(out / wheel_without_compiler.name)
    assert again[0].read_bytes() == again[1].read_bytes()
    names = [zipfile.ZipFile(path).namelist() for path in (wheel_without_compiler, again[0])]
    assert names[0] == names[1]


def version(source):
    return run(sys.executable, "setup.py", "-q", "--version", cwd=source, CXX="none").strip()


def test_version_comes_from_the_tag_or_the_archive(source, sdist, tmp_path):
    if shutil.which("git") is None:
        pytest.skip("no git")
    with tarfile.open(sdist) as archive:
        packed = {each.name.rpartition("/")[2]: each for each in archive}["PKG-INFO"]
        assert f"Version: {version(source)}\n" in archive.extractfile(packed).read().decode()
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)

    def git(*arguments):
        known = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        run("git", *known, *arguments, cwd=tree)

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "one")
    assert version(tree) == version(source)  # no tags: what is worked at
    git("tag", "v3.2.1")
    assert version(tree) == "3.2.1"
    git("commit", "-q", "--allow-empty", "-m", "two")
    assert version(tree) == "3.2.1.post1"
    (tree / "PKG-INFO").write_text("Metadata-Version: 2.4\nName: fastnode\nVersion: 1.9\n")
    assert version(tree) == "1.9"


def names_bound(tree, package):
    """What a package's __init__ defines or imports, but for the modules of the package itself."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            if node.module != package:
                yield from (each.asname or each.name for each in node.names)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (each.id for each in node.targets if isinstance(each, ast.Name))


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda path: ".".join(path.parts))
def test_no_name_of_a_package_shadows_a_module_in_it(folder):
    place = ROOT / folder
    modules = {path.stem for path in place.iterdir() if path.suffix == ".py" or path.is_dir()}
    tree = ast.parse((place / "__init__.py").read_text())
    assert not modules & set(names_bound(tree, ".".join(folder.parts)))


def test_the_root_of_the_package_holds_at_most_8_files():
    assert len([*(ROOT / "fastnode").glob("*.py"), *(ROOT / "fastnode").glob("py.typed")]) <= 8


def test_importing_fastnode_imports_nothing_heavy():
    heavy = "print(sorted({'triton', 'matplotlib', 'sklearn'} & {*sys.modules}))"
    ours = run(sys.executable, "-c", f"import sys, fastnode; {heavy}", cwd=ROOT)
    assert ours == run(sys.executable, "-c", f"import sys, torch; {heavy}", cwd=ROOT)


@pytest.mark.slow
@pytest.mark.skipif("COVERAGE_PROCESS_CONFIG" in os.environ, reason="coverage slows imports down")
def test_importing_fastnode_costs_little_beside_torch():
    seconds()  # writes the bytecode
    # 50 ms where torch takes a second (imports.jsonl of bench/results). The best of each, as beside
    # other work either may take longer.
    torchs, ours = seconds()
    for _ in range(5):
        if ours < 0.06 * torchs:
            break
        torchs, ours = map(min, (torchs, ours), seconds())
    assert ours < 0.06 * torchs
