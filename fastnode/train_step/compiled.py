"""Training steps by native code of the whole loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastnode import extension
from fastnode.engines.fused import request as fused_request
from fastnode.engines.fused.mlp import read_layers
from fastnode.engines.held_values import HeldPlaces
from fastnode.errors import NotCompilable
from fastnode.fields.compile import vectors_of
from fastnode.fields.held import Held
from fastnode.fields.loss import CompiledLoss, LossModule, compile_loss
from fastnode.ops.dispatch import transformed

#: How train_steps ended: the order of csrc/bindings/train_step.cpp.
DONE, OUT_OF_RANGE, INTERRUPTED, NOT_FINITE, OUTDATED = range(5)
#: Times that code is made anew because a value that the loss reads has changed.
_MOST_CHANGES = 8
#: Stands for the generator that is given to each step.
_GIVEN = torch.Generator()


class Code:
    """Code for batches of one form, with what a call of it needs."""

    def __init__(self, held: Held, loss: CompiledLoss):
        self.loss, self.inputs = loss, held.inputs
        self.gradients: dict[Tensor, Tensor] = {}
        first = held.inputs[: held.differentiable]
        flat = loss.code.gradients.split([p.numel() for p in first])
        for p, g, reached in zip(first, flat, loss.reached, strict=True):
            if reached:
                self.gradients[p] = g.view(p.shape)
        self._draws: dict[int, list[Tensor]] = {}

    def draws(self, batch: int, generator: torch.Generator | None) -> list[Any]:
        """Memory for the random numbers of a batch, and their sources."""
        numbers = self._draws.get(batch)
        if numbers is None:
            numbers = [torch.empty(d.shape_of(batch), dtype=d.dtype) for d in self.loss.draws]
            self._draws = {batch: numbers}
        return [
            (d.normal, x, d.batch_dimension, generator if d.generator is _GIVEN else d.generator)
            for d, x in zip(self.loss.draws, numbers, strict=True)
        ]

    def run(
        self,
        rows: Sequence[Tensor],
        picked: Tensor | None,
        generator: torch.Generator | None,
        updates: Sequence[Any],
        clip: float | None,
    ) -> tuple[int, Tensor]:
        """Steps by fastnode._C.train_steps: how they ended, and losses [steps, parts]."""
        batch = rows[0].shape[0] if picked is None else picked.shape[1]
        drawn = self.draws(batch, generator)
        loss = self.loss
        return extension.native().train_steps(
            loss.code, self.inputs, rows, picked, drawn, loss.mean, updates, clip, None
        )


class LossCodes:
    """What was compiled of a loss.

    Args:
        model: the module whose parameters are trained.
        loss: called as ``loss(model, *rows)``.
    """

    def __init__(self, model: nn.Module, loss: Any):
        self._module, self._function = LossModule(model, loss), loss
        self._held: Held | None = None
        self._codes: dict[Any, Code | NotCompilable] = {}
        self._changes = 0

    def find(self, rows: Sequence[Tensor], batch: int, given: bool) -> Code:
        """Code for such rows, in batches of that size.

        Args:
            given: whether the loss is given a generator.

        Raises:
            NotCompilable: there can be none.
        """
        held = self._held
        if held is None or held.is_outdated():
            held = self._look_again()
        key = (
            *((x.shape[1:], x.dtype) for x in rows),
            *(vectors_of(batch, torch.float32), vectors_of(batch, torch.float64)),
            given,
            fused_request.INSTRUCTIONS,
        )
        found = self._codes.get(key)
        if found is None:
            try:
                found = self._make(held, rows, batch, given)
            except NotCompilable as error:
                found = NotCompilable(error.reason, what="loss")
            self._codes[key] = found
        if isinstance(found, NotCompilable):
            raise found
        return found

    def forget(self) -> None:
        """Tensors of the model have another form now."""
        self._held = None

    def _look_again(self) -> Held:
        if self._held is not None:
            self._changes += 1
        held = self._held = Held.of(self._module)
        inside = list(self._module.modules())
        held.places += HeldPlaces(self._function, inside).places
        for each in inside:
            for name, value in vars(each).items():
                if not name.startswith("_") and not isinstance(value, (Tensor, nn.Module)):
                    held.places += HeldPlaces(value, inside).places
                    held.places.append((vars(each), name, value))
        self._codes = {}
        return held

    def _make(self, held: Held, rows: Sequence[Tensor], batch: int, given: bool) -> Code:
        if not extension.AVAILABLE:
            raise NotCompilable("fastnode was installed without its native extension")
        if transformed() or torch.is_autocast_enabled("cpu"):
            raise NotCompilable("a transform or autocast is active")
        if self._changes > _MOST_CHANGES:
            raise NotCompilable("values that the loss reads change too often")
        if read_layers([self._module, *held.inside], []) is None:
            raise NotCompilable("a module inside has hooks")
        for name, x in zip(held.names, held.inputs, strict=True):
            if not x.is_contiguous():
                raise NotCompilable(f"{name} is not contiguous")
            if getattr(x, "_backward_hooks", None) or getattr(
                x, "_post_accumulate_grad_hooks", None
            ):
                raise NotCompilable(f"{name} has hooks")
        example = [x.detach()[torch.arange(batch) % len(x)] for x in rows]
        keywords = {"generator": _GIVEN} if given else {}
        return Code(held, compile_loss(held, example, keywords))
