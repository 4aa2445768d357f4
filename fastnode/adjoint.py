"""The face of torchdiffeq's adjoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastnode.caller import warn
from fastnode.odeint import odeint
from fastnode.problem import State
from fastnode.steppers import find_method


def odeint_adjoint(
    func: Callable[..., Any],
    y0: State,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: str | None = None,
    adjoint_options: Mapping[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
    args: tuple[Any, ...] = (),
) -> Any:
    """odeint with the arguments of torchdiffeq's odeint_adjoint.

    Gradients are those of odeint: exact for the numerical solution, by autograd through its steps.
    So adjoint_rtol, adjoint_atol, adjoint_method and adjoint_options are checked and have no
    effect, callbacks whose names end in ``_adjoint`` are not called, and whatever func depends on
    gets its gradient, in adjoint_params or not.

    Args:
        func, y0, t, rtol, atol, method, options, event_fn, args: as in odeint.
        adjoint_method, adjoint_options: method and options of an adjoint solve; norm may be
            "seminorm".
        adjoint_rtol, adjoint_atol: its tolerances.
        adjoint_params: tensors that get a gradient, zero if the solution does not depend on them;
            the parameters of func if it is None.

    Raises:
        ValueError: func is no nn.Module and adjoint_params is None; or adjoint_method differs from
            method, options is given and adjoint_options is not.
    """
    if adjoint_params is not None:
        params = tuple(adjoint_params)
    elif isinstance(func, nn.Module):
        params = tuple(func.parameters())
    else:
        raise ValueError(
            "func must be an nn.Module where adjoint_params is None, "
            f"got {type(func).__name__}; adjoint_params=() says that it has no parameters"
        )
    if adjoint_method is not None:
        find_method(adjoint_method)
        if adjoint_method != method and options is not None and adjoint_options is None:
            raise ValueError(
                f"adjoint_options must be given with options where adjoint_method "
                f"({adjoint_method!r}) differs from method ({method!r})"
            )
    for i, param in enumerate(params):
        if not isinstance(param, Tensor):
            raise TypeError(f"adjoint_params[{i}] must be a tensor, got {type(param).__name__}")
    _check_options(adjoint_options)
    trained = [param for param in params if param.requires_grad]
    if len(trained) < len(params) and callable((adjoint_options or {}).get("norm")):
        warn("adjoint_params that require no gradient are not in what the adjoint norm is given")
    result = odeint(
        func,
        y0,
        t,
        rtol=rtol,
        atol=atol,
        method=method,
        options=options,
        event_fn=event_fn,
        args=args,
    )
    if not trained or not torch.is_grad_enabled():
        return result
    if event_fn is None:
        return _depend(result, trained)
    event_t, solution = result
    return _depend(event_t, trained), _depend(solution, trained)


def _check_options(options: Mapping[str, Any] | None) -> None:
    if options is None:
        return
    if not isinstance(options, Mapping):
        raise TypeError(f"adjoint_options must be a dict, got {type(options).__name__}")
    norm = options.get("norm")
    if not (norm is None or callable(norm) or norm == "seminorm"):
        raise TypeError(f"norm in adjoint_options must be callable or 'seminorm', got {norm!r}")


def _depend(solution: State, params: list[Tensor]) -> State:
    """Gives parameters that the solution does not depend on a gradient of zero."""
    if isinstance(solution, tuple):
        return tuple(part + _Zero.apply(part, *params) for part in solution)
    return solution + _Zero.apply(solution, *params)


class _Zero(torch.autograd.Function):
    """A zero that depends on parameters."""

    generate_vmap_rule = True

    @staticmethod
    def forward(like: Tensor, *params: Tensor) -> Tensor:
        return torch.zeros((), dtype=like.dtype, device=like.device)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(torch.zeros_like(param) for param in ctx.saved_tensors)
