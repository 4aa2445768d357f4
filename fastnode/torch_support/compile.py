"""Functions that torch.compile does not trace."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])


def uncompiled(function: F) -> F:
    """Makes torch.compile break its graph once, at the call of the function, and not inside it.

    torch.export, which knows no breaks, raises RuntimeError there.
    """
    return traced_by(_nothing)(function)


def traced_by(in_graph: Callable[..., Any]) -> Callable[[F], F]:
    """As ``uncompiled``, but for calls of which ``in_graph`` with the same arguments returns what
    they return: torch.compile and torch.export trace that. It returns None for all others."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            if not torch.compiler.is_compiling():
                return function(*args, **kwargs)
            found = in_graph(*args, **kwargs)
            if found is not None:
                return found
            if is_exporting():
                raise RuntimeError(
                    "torch.export cannot record this solve, whose steps depend on values: take an "
                    "explicit method of fixed steps (euler, midpoint, heun2, heun3, rk4), with "
                    "steps from one time to the next or a number of steps"
                )
            from fastnode.torch_support.compile_disabled import call

            return call(function, *args, **kwargs)

        return cast(F, called)

    return decorate


def is_exporting() -> bool:
    """Whether torch.export records this call.

    ``torch.compiler.is_exporting`` is true in all that torch.compile of torch 2.11 traces; the flag
    behind it is right in every release.
    """
    return torch.compiler._is_exporting_flag


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def constant_in_graphs(function: F) -> F:
    """Makes torch.compile call the function while it traces, and take its result for a constant.

    As ``torch.compiler.assume_constant_result`` does, which imports the whole compiler for it: ten
    times what importing this library costs.
    """
    function._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
    return function
