"""Which implementation of an op runs, decided in one place.

With the extension, torch's dispatcher decides: C++ for CPU tensors, and for every other device what
is registered here (Triton on CUDA where it is installed, plain PyTorch elsewhere). Without it, and
in a graph that torch.compile or torch.export records, the wrappers in this package call the plain
PyTorch reference: a compiler fuses its formulas with the vector field around them, which it cannot
do with an op, and an exported graph runs where fastnode is not installed.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastnode import extension

_library = torch.library.Library("fastnode", "FRAGMENT")  # noqa: TOR901


def transformed() -> bool:
    """Whether a torch.func transform or forward-mode differentiation is active."""
    return (
        torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
    )


def use_ops() -> bool:
    """Whether the registered ops are to be called here.

    Not without the extension, which defines them; nor where tensors are transformed, as transforms
    cannot look into autograd functions written in C++; nor in a graph that a compiler records.
    """
    return extension.AVAILABLE and not torch.compiler.is_compiling() and not transformed()


def overload(name: str) -> Callable[..., Any]:
    """The op ``fastnode::<name>``; a look-up by name at every call would cost 0.3 us each."""
    return getattr(torch.ops.fastnode, name).default if extension.AVAILABLE else _missing


def _missing(*_: object) -> Any:
    raise RuntimeError(f"the extension is {extension.REASON}")


@functools.cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def use_triton(x: Tensor) -> bool:
    return x.is_cuda and has_triton()


def tf32_allowed() -> bool:
    """Whether products of float32 matrices on a GPU may be rounded to TF32.

    The older getter raises where the newer setting was used; torch.compile traces that one alone.
    """
    if torch.compiler.is_compiling():
        return torch.get_float32_matmul_precision() != "highest"
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def register(name: str, other_devices: Callable, fake: Callable) -> None:
    """Gives an op defined in C++ its fake kernel and an implementation for all other devices."""
    if not extension.AVAILABLE:
        return
    _library.impl(name, other_devices, "CompositeExplicitAutograd")
    register_fake(name, fake)


def register_fake(name: str, fake: Callable) -> None:
    """Gives an op that no other device has its fake kernel."""
    torch.library.register_fake(f"fastnode::{name}", fake, lib=_library)


def define_formulas(schema: str, formulas: Callable) -> Callable[..., Any]:
    """Defines an op that every tracer decomposes into its formulas; returns it."""
    name = schema[: schema.index("(")]
    _library.define(schema)
    _library.impl(name, formulas, "CompositeImplicitAutograd")
    return getattr(torch.ops.fastnode, name).default


def define(
    schema: str,
    every_device: Callable,
    fake: Callable,
    autograd: tuple[Callable, Callable] | None = None,
) -> None:
    """Defines an op that has no C++: what runs it, its fake kernel, and if it has a gradient the
    backward function and the one that saves what that needs."""
    name = schema[: schema.index("(")]
    _library.define(schema)
    _library.impl(name, every_device, "CompositeExplicitAutograd")
    register_fake(name, fake)
    if autograd is not None:
        backward, setup_context = autograd
        torch.library.register_autograd(
            f"fastnode::{name}", backward, setup_context=setup_context, lib=_library
        )
