"""How code calls a field: which tensors it reads, in which order, and what is returned."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fastnode.engines.fused.generated import Form
from fastnode.errors import NotCompilable
from fastnode.fields.held import Held, calling
from fastnode.problem.batch import SampleLayout

_NUMBERS = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class _Given:
    """Stands where an argument is a tensor: the number of it among these."""

    index: int


@dataclass(frozen=True, eq=False)
class Signature:
    """The inputs of code are the tensors that a field holds and those among its arguments: first
    those with gradients, of each the field's first.

    Attributes:
        held: names of the field's tensors.
        found: the tensors of a function; none of a module, which has places for them.
        held_first: how many of the field's have gradients.
        layout: the form of a sample, None for one tensor as it is.
        args: further arguments.
        places: where tensors stand among them, those with gradients first.
        args_first: how many of these have gradients.
    """

    held: tuple[str, ...]
    found: tuple[Tensor, ...]
    held_first: int
    layout: SampleLayout | None
    args: tuple[Any, ...]
    places: tuple[int, ...]
    args_first: int

    @staticmethod
    def key(form: Form, gradients: bool) -> Hashable:
        """Of two forms for which the same code serves it is the same."""
        args = tuple(
            (x.shape, x.dtype, gradients and x.requires_grad)
            if isinstance(x, Tensor)
            else (type(x), x if isinstance(x, _NUMBERS) else id(x))
            for x in form.args
        )
        return form.layout, args

    @classmethod
    def of(cls, held: Held, form: Form, gradients: bool) -> Signature:
        """Raises NotCompilable for arguments that code cannot read."""
        first: list[int] = []
        rest: list[int] = []
        for i, x in enumerate(form.args):
            if isinstance(x, Tensor):
                if not x.is_floating_point():
                    raise NotCompilable(
                        f"args[{i}] is {x.dtype}: tensors among args must be floating; make it a "
                        "buffer"
                    )
                (first if gradients and x.requires_grad else rest).append(i)
            elif not isinstance(x, _NUMBERS):
                raise NotCompilable(
                    f"args[{i}] is a {type(x).__name__}: args must be tensors and numbers"
                )
        places = (*first, *rest)
        args = tuple(
            _Given(places.index(i)) if isinstance(x, Tensor) else x for i, x in enumerate(form.args)
        )
        return cls(
            tuple(held.names),
            held.replaced,
            held.differentiable,
            form.layout,
            args,
            places,
            len(first),
        )

    @property
    def differentiable(self) -> int:
        return self.held_first + self.args_first

    @property
    def hint(self) -> str:
        """What a message about samples says of args."""
        if not self.places:
            return ""
        return (
            "; args are shared by all samples: what has a row for each sample belongs into the "
            "state, with a derivative of zero"
        )

    def names(self) -> list[str]:
        return self._joined(self.held, [f"args[{i}]" for i in self.places])

    def joined(self, held: Sequence[Tensor], args: Sequence[Any]) -> list[Tensor]:
        """The inputs of code."""
        return self._joined(held, [args[i] for i in self.places])

    def _joined(self, held: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        m, n = self.held_first, self.args_first
        return [*held[:m], *args[:n], *held[m:], *args[n:]]

    def _parted(self, inputs: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        m, n = self.held_first, self.args_first
        rest = len(self.held) - m
        held = [*inputs[:m], *inputs[m + n : m + n + rest]]
        return held, [*inputs[m : m + n], *inputs[m + n + rest :]]

    def call(self, module: nn.Module, inputs: Sequence[Tensor], t: Tensor, y: Tensor) -> Any:
        """What the module returns with ``inputs`` in place of its tensors; y in rows."""
        held, args = self._parted(inputs)
        called = calling(module, self.held, self.found)
        return called(held, t, self._state(y), *self._arguments(args))

    def plain_call(self, module: nn.Module, inputs: Sequence[Tensor], t: Tensor, y: Tensor) -> Any:
        """The same with its own tensors."""
        _, args = self._parted(inputs)
        return module(t, self._state(y), *self._arguments(args))

    def evaluate(self, module: nn.Module, t: Tensor, y: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """As ``call``, in rows."""
        found = self.call(module, inputs, t, y)
        return found if self.layout is None else self.layout.pack(found)

    def packed(self, found: Any, y: Tensor) -> Tensor:
        """What a module returned for y, in rows.

        Raises:
            NotCompilable: it does not have the state's form.
        """
        state = self._state(y)
        if isinstance(state, Tensor):
            state, found = (state,), (found,)
        elif not isinstance(found, (tuple, list)) or len(found) != len(state):
            raise NotCompilable(f"it must return a tuple of {len(state)} tensors as the state is")
        for x, want in zip(found, state, strict=True):
            if not isinstance(x, Tensor):
                raise NotCompilable(f"it returns {type(x).__name__}, not a tensor")
            if x.shape != want.shape or x.dtype != want.dtype:
                raise NotCompilable(
                    f"for samples of shape {tuple(want.shape)} and {want.dtype} it returns "
                    f"{tuple(x.shape)} and {x.dtype}{self.hint}"
                )
        if self.layout is None:
            return found[0]
        return self.layout.pack(tuple(found) if self.layout.is_tuple else found[0])

    def _state(self, y: Tensor) -> Any:
        if self.layout is None:
            return y
        state = self.layout.unpack(y)
        # As the tensors of a packed state are, of which a field may take views.
        return state if isinstance(state, Tensor) else tuple(x.contiguous() for x in state)

    def _arguments(self, tensors: Sequence[Tensor]) -> list[Any]:
        return [tensors[x.index] if isinstance(x, _Given) else x for x in self.args]
