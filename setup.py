"""Builds fastnode._C; everything else about the package stands in pyproject.toml.

C++ is built whenever a compiler is found. CUDA is built when nvcc is found and torch was built for
CUDA, or when FASTNODE_CUDA=1 asks for it; FASTNODE_CUDA=0 leaves it out. Whether a GPU is present
plays no part: build machines often have none. TORCH_CUDA_ARCH_LIST and MAX_JOBS are honoured.

Without a C++ compiler the package installs all the same and runs on its reference implementation.
With a compiler, a build that fails is an error.
"""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from email import message_from_string
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
DEFAULT_ARCHITECTURES = "8.0 9.0+PTX"
#: The release that is worked at, for a tree that has neither tags nor a version packed with it.
NEXT_RELEASE = "0.1.0"


def version() -> str:
    """That packed with a source distribution, else git's newest tag vX.Y.Z, else the next one."""
    packed = ROOT / "PKG-INFO"
    if packed.exists():
        return str(message_from_string(packed.read_text())["Version"])
    # A .git of our own: an unpacked archive may lie in the repository of somebody else.
    if (ROOT / ".git").exists() and shutil.which("git"):
        describe = ["git", "describe", "--tags", "--long", "--match", "v[0-9]*"]
        found = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True)
        if found.returncode == 0:
            tag, commits, _ = found.stdout.strip().removeprefix("v").rsplit("-", 2)
            return tag if commits == "0" else f"{tag}.post{commits}"
    return f"{NEXT_RELEASE}.dev0"


def find_compiler() -> str | None:
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((found for name in names if (found := shutil.which(name.split()[0]))), None)


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    beside = shutil.which(str(Path(home) / "bin" / "nvcc")) if home else None
    return beside or shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def architecture_flags() -> list[str]:
    flags = []
    for entry in (os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHITECTURES).split():
        for arch in filter(None, entry.split(";")):
            number = arch.removesuffix("+PTX").replace(".", "")
            flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
            if arch.endswith("+PTX"):
                flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def cuda_library_folders(nvcc: str) -> list[str]:
    """Where the CUDA runtime lies, by nvcc's own word: the nvcc on PATH may be only a script."""
    plan = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=True
    ).stderr
    tops = [line.split("TOP=", 1)[1].strip() for line in plan.splitlines() if "TOP=" in line]
    names = ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib")
    folders = [Path(top, name) for top in tops for name in names]
    return [str(folder) for folder in folders if (folder / "libcudart_static.a").exists()]


def cuda_wanted(nvcc: str | None, torch_has_cuda: bool) -> bool:
    asked = os.environ.get("FASTNODE_CUDA")
    if asked not in (None, "", "0", "1"):
        raise SystemExit(f"FASTNODE_CUDA must be 0 or 1, got {asked!r}")
    if asked == "1" and nvcc is None:
        raise SystemExit("FASTNODE_CUDA=1, but nvcc was not found; set CUDA_HOME or PATH")
    return asked == "1" or (asked != "0" and nvcc is not None and torch_has_cuda)


def extension() -> dict:
    if find_compiler() is None:
        print("fastnode: no C++ compiler found, installing without fastnode._C", file=sys.stderr)
        return {}
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    nvcc = find_nvcc()
    with_cuda = cuda_wanted(nvcc, torch.version.cuda is not None)
    sources = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/**/*.cpp"))
    headers = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/**/*.h"))
    flags = [
        "-O3",
        "-std=c++20",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        "-Wno-unused-parameter",
    ]
    # Loops that only move and combine numbers: no errno, no traps; IEEE results otherwise.
    flags += ["-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
    # at::parallel_for is OpenMP in a header. Its runtime is the one torch has loaded, so we compile
    # for it and do not link another.
    flags += ["-fopenmp"]
    # Python's own flags ask for debug information, with which the library has 86 MB instead of 3.
    flags += ["-g0"]
    # Checks name the file that they stand in: by the same path wherever it was built.
    site = Path(torch.__file__).parents[1]
    flags += [f"-fmacro-prefix-map={ROOT.resolve()}=.", f"-fmacro-prefix-map={site}=."]
    ext = CppExtension(
        "fastnode._C",
        sources,
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args={"cxx": flags},
        define_macros=[("FASTNODE_WITH_CUDA", "1")] if with_cuda else [],
        depends=headers,
    )

    class Build(BuildExtension):
        """Compiles the .cu files, which see no torch header, by nvcc alone and links the objects.

        torch's own CUDAExtension asks for a CUDA build of torch even to compile; ours must compile
        wherever nvcc is, so that machines without a GPU check every kernel.
        """

        def build_extensions(self) -> None:
            if with_cuda:
                assert nvcc is not None
                out = Path(self.build_temp) / "cuda"
                out.mkdir(parents=True, exist_ok=True)
                flags = ["-O3", "-std=c++17", "-I", str(ROOT / "csrc"), "-Xcompiler", "-fPIC"]
                sources = sorted(ROOT.glob("csrc/**/*.cu"))
                targets = [str(out / (source.stem + ".o")) for source in sources]
                commands = [
                    [nvcc, "-c", str(source), "-o", target, *flags, *architecture_flags()]
                    for source, target in zip(sources, targets, strict=True)
                ]
                jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
                with ThreadPoolExecutor(jobs) as pool:
                    list(pool.map(subprocess.check_call, commands))
                ext.extra_objects += targets
                ext.extra_link_args += [f"-L{folder}" for folder in cuda_library_folders(nvcc)]
                ext.extra_link_args += ["-lcudart_static", "-lrt", "-ldl", "-lpthread"]
            super().build_extensions()

    return {"ext_modules": [ext], "cmdclass": {"build_ext": Build}}


def packages() -> list[str]:
    """Those of fastnode, and what pyproject.toml maps into it."""
    # In a checkout links may stand at these places too.
    mapped = {"fastnode.triton_kernels", "fastnode.csrc"}
    return sorted({*find_packages(include=["fastnode", "fastnode.*"]), *mapped})


setup(version=version(), packages=packages(), **extension())
