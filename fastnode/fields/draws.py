"""Random numbers that a function draws for each sample of a batch: found, and handed out again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastnode.errors import NotCompilable

_UNIFORM = (torch.rand, torch.rand_like)
_NORMAL = (torch.randn, torch.randn_like)
_LIKE = (torch.rand_like, torch.randn_like)


@dataclass(frozen=True)
class Draw:
    """Numbers that are drawn in one call.

    Attributes:
        normal: from N(0, 1), else uniform in [0, 1).
        shape: that of one sample's batch.
        batch_dimension: where the samples stand in it.
        dtype: of the numbers.
        generator: their source; None for torch's default one.
    """

    normal: bool
    shape: tuple[int, ...]
    batch_dimension: int
    dtype: torch.dtype
    generator: torch.Generator | None

    @property
    def numbers(self) -> int:
        """For each sample."""
        return torch.Size(self.shape).numel()

    def shape_of(self, batch: int) -> list[int]:
        d = self.batch_dimension
        return [*self.shape[:d], batch, *self.shape[d + 1 :]]

    def of_samples(self, drawn: Tensor) -> Tensor:
        """Those of each sample in a row, [B, numbers]."""
        return drawn.movedim(self.batch_dimension, 0).reshape(drawn.shape[self.batch_dimension], -1)

    def of_one(self, row: Tensor) -> Tensor:
        """A row as the call for one sample returns it."""
        d = self.batch_dimension
        rest = [*self.shape[:d], *self.shape[d + 1 :]]
        return row.reshape(rest).unsqueeze(d)


@dataclass(frozen=True)
class _Call:
    normal: bool
    shape: tuple[int, ...]
    dtype: torch.dtype
    generator: torch.Generator | None


class _Drawing(TorchFunctionMode):
    """Inside of it calls that draw numbers are answered by ``answer``."""

    def __init__(self, answer: Callable[[_Call], Tensor]):
        super().__init__()
        self._answer = answer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _UNIFORM or func in _NORMAL:
            shape, dtype = _asked(func, args, kwargs)
            call = _Call(func in _NORMAL, shape, dtype, kwargs.get("generator"))
            return self._answer(call)
        return func(*args, **kwargs)


def _asked(func: Any, args: Any, kwargs: Any) -> tuple[tuple[int, ...], torch.dtype]:
    if func in _LIKE:
        like = kwargs["input"] if "input" in kwargs else args[0]
        return tuple(like.shape), kwargs.get("dtype") or like.dtype
    sizes = kwargs["size"] if "size" in kwargs else args
    if len(sizes) == 1 and not isinstance(sizes[0], int):
        sizes = sizes[0]
    return tuple(int(n) for n in sizes), kwargs.get("dtype") or torch.get_default_dtype()


def find_draws(call: Callable[[int], Any]) -> list[Draw]:
    """What ``call(B)``, on a batch of B samples, draws.

    Raises:
        NotCompilable: it draws other numbers for another batch, or some that samples share.
    """
    found: list[list[_Call]] = []
    for batch in (2, 3):
        calls: list[_Call] = []
        source = torch.Generator().manual_seed(0)

        def answer(
            one: _Call, calls: list[_Call] = calls, source: torch.Generator = source
        ) -> Tensor:
            calls.append(one)
            make = torch.randn if one.normal else torch.rand
            return make(one.shape, dtype=one.dtype, generator=source)

        with _Drawing(answer):
            call(batch)
        found.append(calls)
    two, three = found
    if [each.normal for each in two] != [each.normal for each in three]:
        raise NotCompilable("it draws other random numbers for another number of samples")
    return [_by_sample(a, b) for a, b in zip(two, three, strict=True)]


def _by_sample(two: _Call, three: _Call) -> Draw:
    same = len(two.shape) == len(three.shape)
    differ = [d for d, n in enumerate(two.shape) if same and n != three.shape[d]]
    if len(differ) != 1 or (two.shape[differ[0]], three.shape[differ[0]]) != (2, 3):
        raise NotCompilable(
            f"it draws random numbers of shape {two.shape} for 2 samples and {three.shape} for 3; "
            "draw one row for each sample"
        )
    d = differ[0]
    shape = (*two.shape[:d], 1, *two.shape[d + 1 :])
    return Draw(two.normal, shape, d, two.dtype, two.generator)


def drawing(draws: Sequence[Draw], numbers: Sequence[Tensor]) -> TorchFunctionMode:
    """Inside of it these numbers are what the calls return, in order."""
    left = iter(zip(draws, numbers, strict=True))

    def answer(one: _Call) -> Tensor:
        draw, given = next(left, (None, None))
        if draw is None or given is None or draw.normal != one.normal:
            raise NotCompilable("it does not draw the same random numbers in each call")
        return given

    return _Drawing(answer)
