"""Native code for the field of a module that solves: ``compile=True``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

#: Makes the compiled field of a module; ``fastnode.fields.compile`` puts it here, which stands
#: above.
MAKERS: list[Callable[[nn.Module], Any]] = []


class CompiledInside:
    """The compiled field of a module that solves, beside what it holds: its parameters, buffers and
    ``state_dict`` are those without it. Made at the first solve.

    Args:
        wanted: whether there is to be one.
    """

    def __init__(self, wanted: bool):
        if not isinstance(wanted, bool):
            raise TypeError(f"compile must be True or False, got {type(wanted).__name__}")
        self.wanted = wanted
        self._made: Any = None

    def __call__(self, field: nn.Module, z0: Tensor) -> nn.Module:
        """What is to be solved in place of ``field``, which may be another one each time.

        Raises:
            NotCompilable: at the first solve with such a state, if there can be no code.
        """
        if not self.wanted or torch.compiler.is_compiling() or hasattr(type(field), "perceptron"):
            return field
        made = self._made
        if made is None or made.module is not field:
            # Not by the attribute from here on: replicas of nn.DataParallel share this object.
            made = self._made = MAKERS[0](field)
        made.check(z0)
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {"wanted": self.wanted, "_made": None}
