"""How gradients of a solve are made: the choices, and what each can do.

| adjoint | keeps | gradient |
|---|---|---|
| backprop | every stage's graph | exact for the discrete solve |
| checkpoint | the state at each accepted step | exact for the discrete solve |
| revolve | a fixed number of states | exact for the discrete solve |
| reversible | two states | exact for its own discrete solve |
| continuous | the end state | approximate: a second solve |
| none | nothing | none |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from fastnode.adjoints.discrete.revolve import Revolve
from fastnode.tableaus import METHODS
from fastnode.torch_support.recompute import module_of

NAMES = ("backprop", "checkpoint", "revolve", "reversible", "continuous", "none")
#: Those that take the steps of the forward pass again.
DISCRETE = ("checkpoint", "revolve", "reversible")


def find_adjoint(adjoint: str | Revolve, method: str) -> tuple[str, int | None]:
    """The adjoint's name and its number of slots.

    Raises:
        ValueError: unknown, or not for this method.
    """
    if isinstance(adjoint, Revolve):
        name, slots = "revolve", adjoint.slots
    elif adjoint == "revolve":
        raise ValueError(
            "adjoint='revolve' needs the number of states it may keep: fastnode.Revolve(slots)"
        )
    elif not isinstance(adjoint, str) or adjoint not in NAMES:
        raise ValueError(
            f"adjoint must be one of {', '.join(NAMES)} or a fastnode.Revolve, got {adjoint!r}"
        )
    else:
        name, slots = adjoint, None
    if name in DISCRETE and method not in METHODS:
        raise ValueError(
            f"adjoint {name!r} needs an explicit Runge-Kutta method ({', '.join(METHODS)}), got "
            f"{method!r}; use adjoint='backprop'"
        )
    return name, slots


def find_params(
    func: Callable[..., Any], adjoint: str, adjoint_params: Iterable[Tensor] | None
) -> tuple[Tensor, ...]:
    """The tensors that func holds and that need a gradient.

    Raises:
        ValueError, TypeError: nobody said which these are, or one is no leaf.
    """
    if adjoint_params is not None:
        params = tuple(adjoint_params)
    else:
        module = module_of(func)
        if module is None:
            raise ValueError(
                f"adjoint {adjoint!r} must know the tensors that func holds: make func an "
                "nn.Module, or name them in adjoint_params, () if there are none; got "
                f"{type(func).__name__}"
            )
        params = tuple(module.parameters())
    for i, param in enumerate(params):
        if not isinstance(param, Tensor):
            raise TypeError(f"adjoint_params[{i}] must be a tensor, got {type(param).__name__}")
        if not param.is_leaf:
            raise ValueError(
                f"adjoint_params[{i}] must be a leaf, got the result of {param.grad_fn}; pass what "
                "other operations made in args, or use adjoint='backprop'"
            )
    # The same tensor twice would get its gradient twice.
    unique = {id(param): param for param in params if param.requires_grad}
    return tuple(unique.values())
