"""From an ordinary ``forward(t, y)`` module to a field that the fused engine solves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastnode.engines.fused.mlp import Perceptron, read_layers
from fastnode.engines.held_values import changed
from fastnode.fields.fuse_reading import Reading
from fastnode.fields.fuse_trace import NotFusable
from fastnode.nn.fields import MLPField
from fastnode.torch_support.compile import constant_in_graphs

__all__ = ["FusedField", "NotFusable", "fuse"]


class FusedField(nn.Module):
    """A module and the perceptron in it; made by ``fuse``.

    Attributes of the module are attributes of the field, to read and to set, and its parameters and
    buffers have the same names, in ``state_dict`` too.
    """

    module: nn.Module

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        self._reading = Reading(module)

    def forward(self, t: Tensor | float, y: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.module(t, y, *args, **kwargs)

    def perceptron(self) -> Perceptron | None:
        """As MLPField.perceptron. If what forward may read has changed, it is traced again."""
        reading: Reading = self.__dict__["_reading"]
        if torch.compiler.is_compiling() and not reading.is_compiled_for():
            return None
        layers = read_layers([self, *reading.inside], reading.layers)
        if layers is not None and self._has_changed():
            if torch.compiler.is_compiling():
                return None
            self._reading = reading = Reading(self.module)
            layers = read_layers([self, *reading.inside], reading.layers)
        if layers is None or reading.error is not None or reading.has_callbacks:
            return None
        return reading.scaled(layers) if reading.is_scaled else layers, reading.activation

    @constant_in_graphs
    def _has_changed(self) -> bool:
        return changed(self._reading.places)

    @property
    def why_not_fused(self) -> str | None:
        """Why the fused engine does not take the module as it is; None if there is no reason in
        its forward."""
        error = self._reading.error
        return None if error is None else str(error)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        module = self.__dict__.get("_modules", {}).get("module")
        own = module is None or name in self.__dict__ or name in ("module", "_reading")
        if own or not hasattr(module, name):
            super().__setattr__(name, value)
        else:
            setattr(module, name, value)

    def __getstate__(self) -> dict[str, Any]:
        # What was read holds global variables of the module's code.
        return {name: value for name, value in self.__dict__.items() if name != "_reading"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._reading = Reading(self.module)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        yield from self.module.named_modules(memo, prefix, remove_duplicate)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.load_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # Called by a module that this one is a part of, which then loads ``module``.
        for name in [name for name in state_dict if name.startswith(prefix)]:
            state_dict[f"{prefix}module.{name[len(prefix) :]}"] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)


def fuse(module: Callable[..., Any]) -> Any:
    """A field with the parameters of ``module`` that is solved by the fused engine.

    ``module`` is an ordinary nn.Module with ``forward(t, y)``: 1 to 8 nn.Linear with one kind of
    activation between them and, if it is wanted, after the last one (ELU, GELU, LeakyReLU, ReLU,
    SELU, sigmoid, SiLU, sine, softplus, tanh, as modules or as functions, with their default
    options; softplus with any beta). The time may be appended to the input of any layer by
    ``torch.cat`` along the last dimension. Between these operations a state may be multiplied with
    or divided by a Python number, negated, and pass through dropout that does nothing. Whatever
    else forward takes has its default.

    The result calls ``module`` and shares its parameters: train either. Solves with what the fused
    engine does not know run on other engines, as for any field. So do solves of a module that has
    become something else: where an attribute, a submodule, the training mode or a variable that
    forward may read has changed, the next solve traces it again.

    Args:
        module: what to fuse; an MLPField, which needs none, or a fused field is returned as it is.

    Raises:
        NotFusable: ``module`` is something else; it names the first operation that stands in the
            way.
        TypeError: ``module`` is no nn.Module.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be an nn.Module, got {type(module).__name__}")
    if type(module) in (MLPField, FusedField):
        return module
    fused = FusedField(module)
    error = fused._reading.error
    if error is not None:
        raise error
    if read_layers(fused._reading.inside, fused._reading.layers) is None:
        raise NotFusable("a module inside has hooks or parametrisations", "hooks")
    return fused
