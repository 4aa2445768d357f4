"""What a field holds, and calls of it with other tensors in their place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from fastnode.engines.held_values import HeldPlaces, HeldValues, Place, changed

REAL = (torch.float32, torch.float64)
_PLAIN = (bool, int, float, str, type(None))
#: Places that are watched of a function.
_MOST = 1 << 16


class FunctionField(nn.Module):
    """A function as a module.

    Args:
        function: called as ``function(t, y, *args)``.
        declared: tensors that it reads, besides those that are found.
    """

    def __init__(self, function: Callable[..., Any], declared: Sequence[Tensor]):
        super().__init__()
        self.function, self.declared = function, tuple(declared)

    def forward(self, *args: Any) -> Any:
        return self.function(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> FunctionField:
        # A function's copy is itself, and reads the same tensors.
        return FunctionField(copy.deepcopy(self.function, memo), self.declared)

    def held(self) -> HeldValues:
        """What the function closes over, and what is inside of that."""
        found = HeldValues.of(self.function)
        for i, x in enumerate(self.declared):
            if not any(x is y for y in found.tensors.values()):
                found.tensors[f"adjoint_params[{i}]"] = x
        return found


class _Replaced(TorchFunctionMode):
    """Inside of it, operations on some tensors are given others: a function's variables stay as
    they are, for other threads too."""

    def __init__(self, old: Sequence[Tensor], new: Sequence[Tensor]):
        super().__init__()
        self._new = {id(x): y for x, y in zip(old, new, strict=True)}

    def replaced(self, x: Any) -> Any:
        return tree_map_only(Tensor, lambda each: self._new.get(id(each), each), x)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*self.replaced(args), **self.replaced(kwargs or {}))


@dataclass(eq=False)
class Held:
    """What a module holds, as it was when it was looked at."""

    module: nn.Module
    inside: list[nn.Module]
    #: Where modules, tensors and plain values stood: others in their place ask for new code.
    places: list[Place]
    #: How many attributes each module had.
    counts: list[int]
    names: list[str]
    #: The tensors: those with gradients first.
    inputs: list[Tensor]
    differentiable: int
    #: The places whose change makes it another field, whatever its tensors are.
    fixed: list[Place] = field(init=False)

    def __post_init__(self) -> None:
        self.fixed = [place for place in self.places if not isinstance(place[2], Tensor)]

    def is_outdated(self) -> bool:
        """Whether the module holds something else now, or a tensor got a gradient."""
        if changed(self.places):
            return True
        return any(x.requires_grad for x in self.inputs[self.differentiable :])

    @property
    def replaced(self) -> tuple[Tensor, ...]:
        """The tensors of a function, of which operations are to be given others; a module has
        places to put others in."""
        return tuple(self.inputs) if isinstance(self.module, FunctionField) else ()

    def changed_name(self) -> str | None:
        """The name of what is no longer as it was."""
        for holder, key, value in self.places:
            if changed([(holder, key, value)]):
                return str(key)
        same = self.counts == [len(each.__dict__) for each in self.inside]
        return None if same else "new"

    @classmethod
    def of(cls, module: nn.Module) -> Held:
        if isinstance(module, FunctionField):
            return cls._of_function(module)
        held = [*module.named_parameters(), *module.named_buffers()]
        inside, rest = list(module.modules()), [x for _, x in held if not _has_gradient(x)]
        places: list[Place] = []
        for each in inside:
            for part in (each._parameters, each._buffers, each._modules):
                places += [(part, name, value) for name, value in part.items()]
                places.append((part, None, len(part)))
            own = each.__dict__
            places += [
                (own, name, value)
                for name, value in own.items()
                if isinstance(value, _PLAIN) and not name.startswith("_")
            ]
        # Indices are part of the code.
        places += [
            (x, None, x._version) for x in rest if not (x.is_floating_point() or x.is_inference())
        ]
        return cls._sorted(module, inside, places, held)

    @classmethod
    def _of_function(cls, module: FunctionField) -> Held:
        found = module.held()
        # Numbers of tensors are read at each solve, but for indices.
        places = [
            (holder, key, value)
            for holder, key, value in HeldPlaces(module.function, [], _MOST).places
            if not (isinstance(holder, Tensor) and holder.is_floating_point())
        ]
        inside = [module, *(part for each in found.modules for part in each.modules())]
        return cls._sorted(module, inside, places, list(found.tensors.items()))

    @classmethod
    def _sorted(
        cls,
        module: nn.Module,
        inside: list[nn.Module],
        places: list[Place],
        held: list[tuple[str, Tensor]],
    ) -> Held:
        first = [(name, x) for name, x in held if _has_gradient(x)]
        rest = [(name, x) for name, x in held if not _has_gradient(x)]
        return cls(
            module,
            inside,
            places,
            [len(each.__dict__) for each in inside],
            [name for name, _ in (*first, *rest)],
            [x for _, x in (*first, *rest)],
            len(first),
        )


def calling(module: nn.Module, names: Sequence[str], found: Sequence[Tensor]) -> Callable[..., Any]:
    """A function of tensors in place of those that a module holds under ``names``, or that a
    function reads, and of its arguments."""
    if not isinstance(module, FunctionField):
        return lambda new, *args, **keywords: functional_call(
            module, dict(zip(names, new, strict=True)), args, keywords
        )

    def call(new: Sequence[Tensor], *args: Any, **keywords: Any) -> Any:
        mode = _Replaced(found, new)
        with mode:
            result = module(*args, **keywords)
        # A variable that is returned as it is went through no operation.
        return mode.replaced(result)

    return call


def _has_gradient(x: Tensor) -> bool:
    # Under torch.func.functional_call plain tensors stand where parameters do.
    return x.dtype in REAL and (isinstance(x, nn.Parameter) or x.requires_grad)
