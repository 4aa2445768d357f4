"""What fastnode.fuse read in a module, and the values that it was read with."""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnode.engines.fused.mlp import (
    ACTIVATION_NUMBERS,
    ACTIVATIONS,
    FIRST,
    LAST,
    TIMELESS,
    Layers,
    read_layers,
)
from fastnode.engines.held_values import HeldPlaces, Place, changed
from fastnode.fields.fuse_trace import Net, NotFusable, read_net
from fastnode.problem.callbacks import ADAPTIVE_CALLBACKS

COLUMNS = {None: TIMELESS, "first": FIRST, "last": LAST}


class Reading:
    """The perceptron in a module, as long as ``places`` hold what they do.

    What forward itself changes, as a counter of its calls, is put back, and is not among them.

    Attributes:
        error: why there is none; None if there is one.
        inside: the modules that a call of it calls.
        layers: linear layers, each with the column of the time, as ``read_layers`` takes them.
        activation: its number.
        is_scaled: whether layers are to be ``scaled`` before they are solved.
        has_callbacks: whether the module has attributes that solvers call.
        numbers, children, counts: what modules inside hold, for torch.compile.
    """

    def __init__(self, module: nn.Module):
        self.error: NotFusable | None = None
        self.inside = list(module.modules())
        self.layers: list[tuple[nn.Module, int]] = []
        self.activation, self.is_scaled = 0, False
        self.has_callbacks = any(hasattr(module, name) for name in ADAPTIVE_CALLBACKS)
        self._scales: list[tuple[float, float]] = []
        self._last: float | None = None
        before = HeldPlaces(module, []).places
        copies = [
            (holder, holder.copy())
            for holder, key, _ in before
            if key is None and isinstance(holder, (dict, list))
        ]
        try:
            net = read_net(module)
            if changed(before) and read_net(module) != net:
                raise NotFusable("forward changes what it does from call to call", "forward")
            self._take(net)
            self._check(module, net)
        except NotFusable as error:
            self.error, self.layers = error, []
        own = _put_back(before, copies)
        held = HeldPlaces(module, [layer for layer, _ in self.layers]).places
        self.places: list[Place] = [each for each in held if (id(each[0]), each[1]) not in own]
        by_name = {(id(holder), key) for holder, key, _ in self.places}
        self.numbers = [
            (each, name, value)
            for each in self.inside
            for name, value in vars(each).items()
            if isinstance(value, (bool, int, float, str)) and (id(vars(each)), name) in by_name
        ]
        self.children = [
            (each, name, child) for each in self.inside for name, child in each._modules.items()
        ]
        self.counts = [(each, len(each._modules)) for each in self.inside]
        if self.error is not None:
            # Without them there may be no error.
            for each in self.inside:
                hooks = (each._forward_hooks, each._forward_pre_hooks)
                self.places += ((hook, None, len(hook)) for hook in hooks)

    def is_compiled_for(self) -> bool:
        """Whether numbers and modules that modules hold are still the same, in a form from which
        torch.compile makes guards: then it compiles the caller again after a change."""
        return (
            all(getattr(module, name) == value for module, name, value in self.numbers)
            and all(module._modules.get(name) is child for module, name, child in self.children)
            and all(len(module._modules) == count for module, count in self.counts)
        )

    def _take(self, net: Net) -> None:
        self.layers = [(each.module, COLUMNS[each.column]) for each in net.layers]
        self.activation = ACTIVATION_NUMBERS[net.activation]
        scales = [(each.before, each.after) for each in net.layers]
        self._scales = scales if any(each != (1.0, 1.0) for each in scales) else []
        self._last = net.last
        self.is_scaled = bool(self._scales) or self._last is not None

    def scaled(self, layers: Layers) -> Layers:
        """What linear layers hold, with the factors around them in their weights; an activation of
        the last one's result stands before a layer that multiplies with a number."""
        if self._scales:
            layers = [
                _scale(layer, *factors) for layer, factors in zip(layers, self._scales, strict=True)
            ]
        if self._last is not None:
            weight = layers[-1][0]
            after = _identity(weight.shape[0], weight.dtype, weight.device)
            if self._last != 1.0:
                after = after * self._last
            layers = [*layers, (after, None, TIMELESS)]
        return layers

    @torch.no_grad()
    def _check(self, module: nn.Module, net: Net) -> None:
        """Compares what was read with what the module does, at one point."""
        found = read_layers(self.inside, self.layers)
        if found is None:
            # Hooks, which every solve looks for.
            return
        layers = self.scaled(found)
        first, _, column = layers[0]
        y = torch.randn(
            3,
            first.shape[1] - (column >= 0),
            dtype=first.dtype,
            device=first.device,
            generator=torch.Generator(first.device).manual_seed(0),
        )
        t = torch.tensor(0.37, dtype=first.dtype, device=first.device)
        try:
            expected = module(t, y)
        except (RuntimeError, IndexError) as error:
            message = f"the module fails for a state [3, {y.shape[1]}]: {error}"
            raise NotFusable(message, "") from error
        z = y
        for i, (weight, bias, column) in enumerate(layers):
            if i:
                z = ACTIVATIONS[net.activation](z)
            if column >= 0:
                time = t.expand(3, 1)
                z = torch.cat([z[:, :column], time, z[:, column:]], dim=1)
            z = F.linear(z, weight, bias)
        if z.shape != expected.shape or not torch.allclose(z, expected, rtol=1e-4, atol=1e-5):
            message = "the module returns something else than the perceptron in it"
            raise NotFusable(message, "forward")


def _put_back(places: list[Place], copies: list[tuple[Any, Any]]) -> set[tuple[int, Any]]:
    """Puts back what has changed, but for contents of tensors; (id of the holder, key) of each."""
    gone = [place for place in places if changed([place])]
    own = {(id(holder), key) for holder, key, _ in gone}
    for holder, copy in copies:
        if (id(holder), None) not in own:
            continue
        if isinstance(holder, list):
            holder[:] = copy
            continue
        for key in holder.keys() - copy.keys():
            del holder[key]
    for holder, key, value in gone:
        if isinstance(holder, types.CellType):
            holder.cell_contents = value
        elif isinstance(holder, type):
            setattr(holder, key, value)
        elif isinstance(holder, (dict, list)) and key is not None:
            holder[key] = value
    return own


def _scale(
    layer: tuple[Tensor, Tensor | None, int], before: float, after: float
) -> tuple[Tensor, Tensor | None, int]:
    weight, bias, column = layer
    if column < 0 or before == 1.0:
        weight = weight * (before * after)
    else:
        factors = weight.new_full((weight.shape[1],), before * after)
        factors[column] = after
        weight = weight * factors
    return weight, bias if bias is None or after == 1.0 else bias * after, column


@functools.lru_cache(maxsize=64)
def _identity(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # Solves in inference mode and solves with gradients use the same.
    with torch.inference_mode(False):
        return torch.eye(size, dtype=dtype, device=device)
