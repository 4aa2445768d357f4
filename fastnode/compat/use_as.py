"""fastnode in the place of a library that other libraries import by its name."""

from __future__ import annotations

import sys
from types import FunctionType, ModuleType

#: Libraries whose interface fastnode has, with the modules that their users import.
REPLACED = {"torchdiffeq": ("", "._impl", "._impl.odeint")}


def use_as(name: str) -> None:
    """Makes ``import torchdiffeq`` import fastnode, in libraries that do it by themselves too.

    It holds for the rest of the process, for all that is imported after the call: call it before
    the first import of such a library. torchdiffeq need not be installed. A second call has no
    effect.

    Args:
        name: "torchdiffeq".

    Raises:
        ValueError: another name.
        RuntimeError: somebody has imported the library itself and would keep using it; the
            error names the modules.
    """
    if name not in REPLACED:
        raise ValueError(f"name must be one of {', '.join(map(repr, REPLACED))}, got {name!r}")
    import fastnode._impl.odeint

    if sys.modules.get(name) is fastnode:
        return
    holders = _holders(name)
    if holders:
        raise RuntimeError(
            f"{name} has been imported already, by {', '.join(holders)}: call "
            f"fastnode.use_as({name!r}) before that"
        )
    for module in [module for module in sys.modules if _inside(module, name)]:
        del sys.modules[module]
    for part in REPLACED[name]:
        sys.modules[name + part] = sys.modules["fastnode" + part]


def _inside(module: str, name: str) -> bool:
    return module == name or module.startswith(name + ".")


def _holders(name: str) -> list[str]:
    """The modules that hold the library, or something of it."""
    holders = []
    for module_name, module in list(sys.modules.items()):
        if not isinstance(module, ModuleType) or _inside(module_name, name):
            continue
        if any(_inside(_origin(value), name) for value in list(vars(module).values())):
            holders.append(module_name)
    return sorted(holders)


def _origin(value: object) -> str:
    """The module that a module, function or class is or comes from."""
    if isinstance(value, ModuleType):
        return value.__name__
    # Of other objects not even an attribute is read: it may be one that loads something.
    return str(value.__module__) if isinstance(value, (FunctionType, type)) else ""
