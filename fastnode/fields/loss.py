"""A loss that treats samples alone, and its gradients, as native code."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from fastnode import extension
from fastnode.errors import NotCompilable
from fastnode.fields.compile import vector_bytes, vectors_of
from fastnode.fields.draws import Draw, drawing, find_draws
from fastnode.fields.held import REAL, Held, calling

#: Whole numbers up to it are numbers of that dtype.
_LARGEST_WHOLE = {torch.float32: 1 << 24, torch.float64: 1 << 53}
#: Samples that the checks call the loss with.
_SAMPLES = 5


class LossModule(nn.Module):
    """A loss as a module: ``loss(model, *rows)``."""

    def __init__(self, model: nn.Module, loss: Callable[..., Any]):
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, *rows: Any, **kwargs: Any) -> Any:
        return self._loss(self.model, *rows, **kwargs)


@dataclass(frozen=True)
class Row:
    """Form of one argument: the shape of a sample and its dtype, and whether a gradient is made."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    gradient: bool = False

    @classmethod
    def of(cls, x: Tensor) -> Row:
        return cls(tuple(x.shape[1:]), x.dtype, x.requires_grad)

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


@dataclass(eq=False)
class CompiledLoss:
    """Code of a loss for rows of one form.

    Attributes:
        code: what fastnode._C.train_steps runs. The first part that it computes is the total, the
            others are the scalars that the loss returns.
        draws: the random numbers that it draws.
        mean: whether the loss is a mean over the samples; else it is their sum.
        reached: for each of the tensors with gradients, whether the loss depends on it.
    """

    code: Any
    draws: list[Draw]
    mean: bool
    reached: list[bool]
    #: Makes what the loss returns of its scalars.
    join: Callable[[Sequence[Any]], Any]

    def result(self, parts: Sequence[Any]) -> Any:
        """What the loss returns, of its parts."""
        return self.join(parts[1:])


def _joiner(found: Any, form: TreeSpec) -> Callable[[Sequence[Any]], Any]:
    if isinstance(found, Tensor):
        return itemgetter(0)
    flat = isinstance(found, tuple) and all(isinstance(x, Tensor) for x in found)
    if flat and hasattr(found, "_make"):
        return type(found)._make  # pyright: ignore
    return lambda parts: tree_unflatten(list(parts), form)


def total_of(found: Any) -> Tensor:
    """The scalar that is trained on: a loss, or what has one named ``total``."""
    return found if isinstance(found, Tensor) else found.total


def _scalars(found: Any) -> tuple[list[Tensor], TreeSpec]:
    leaves, form = tree_flatten(found)
    for x in leaves:
        if not isinstance(x, Tensor) or x.dim() != 0:
            shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise NotCompilable(f"it must return scalars, got {shape}")
    return leaves, form


def compile_loss(held: Held, rows: Sequence[Tensor], keywords: dict[str, Any]) -> CompiledLoss:
    """Code for a loss, called as the module of ``held`` is: ``loss(*rows, **keywords)``.

    Args:
        held: of a LossModule.
        rows: a batch of its arguments, each [B, ...] of the parameters' dtype or of int64; those
            that require a gradient get one. Code serves batches of about as many samples.
        keywords: further arguments, the same in each call.

    Raises:
        NotCompilable: the loss mixes samples, draws random numbers that are not each sample's own,
            or uses an operation without code; there is no compiler.
    """
    # What makes code is imported when something is compiled, as few programs do.
    from fastnode.fields.trace import graph_of

    dtype = _common_dtype(held, rows)
    forms, vectors = [Row.of(x) for x in rows], vectors_of(len(rows[0]), dtype)
    rows = [x.detach() for x in rows]
    tensors, first = [x.detach() for x in held.inputs], held.differentiable
    call = calling(held.module, held.names, held.replaced)

    def plain(inputs: Sequence[Tensor], batch: Sequence[Tensor]) -> Any:
        return call(inputs, *batch, **keywords)

    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        draws = find_draws(lambda n: plain(_copies(tensors), _some(rows, n)))
        for each in draws:
            if each.dtype != dtype:
                raise NotCompilable(f"it draws random numbers of {each.dtype}, not of {dtype}")
        mean = _check(held, plain, tensors, rows, draws)

    bounds: list[int] = []
    joins: list[Callable[[Sequence[Any]], Any]] = []
    counted: list[int] = []
    counts = [*(each.numbers for each in forms), *(each.numbers for each in draws)]
    with_gradient = [i for i, each in enumerate(forms) if each.gradient]

    def joint(numbers: Tensor, weight: Tensor, *inputs: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad(), _tracing(bounds):
            leaves = [x.detach().requires_grad_() for x in inputs[:first]]
            parts = [part.detach() for part in numbers.split(counts)]
            of_rows = [parts[i].requires_grad_() for i in with_gradient]
            batch = [
                part.reshape(1, *each.shape).to(each.dtype)
                for part, each in zip(parts, forms, strict=False)
            ]
            drawn = [d.of_one(part) for d, part in zip(draws, parts[len(forms) :], strict=True)]
            with drawing(draws, drawn):
                found = plain([*leaves, *inputs[first:]], batch)
            scalars, form = _scalars(found)
            joins[:], counted[:] = [_joiner(found, form)], [1 + len(scalars)]
            total = total_of(found)
            wanted = [*leaves, *of_rows]
            made = torch.autograd.grad(total * weight, wanted, allow_unused=True)
            out = [x.detach().reshape(1).to(numbers.dtype) for x in (total, *scalars)]
            for x, g in zip(of_rows, made[len(leaves) :], strict=True):
                out.append(torch.zeros_like(x) if g is None else g)
            return (torch.cat(out), *made[: len(leaves)])

    numbers = torch.zeros(sum(counts), dtype=dtype)
    graph = graph_of(joint, (numbers, numbers.new_zeros(()), *tensors))
    outputs = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    reached = [isinstance(x, fx.Node) for x in outputs[1:]]
    of_rows = sum(forms[i].numbers for i in with_gradient)
    code = _build(graph, tensors, first, numbers, counted[0], of_rows, vectors)
    largest = _LARGEST_WHOLE[dtype]
    code.least, code.most = (0, min(bounds) - 1) if bounds else (-largest, largest)
    return CompiledLoss(code, draws, mean, reached, joins[0])


def _build(
    graph: fx.GraphModule,
    tensors: Sequence[Tensor],
    first: int,
    numbers: Tensor,
    parts: int,
    of_rows: int,
    vectors: int,
) -> Any:
    from fastnode.fields import code
    from fastnode.fields.ir import SAMPLE, Buffer, View
    from fastnode.fields.lower import Lowering

    sample = View.whole(Buffer(len(numbers), SAMPLE, "y"), numbers.shape)
    weight = View.whole(Buffer(1, SAMPLE, "g"), ())
    given = [sample, weight, *code.held_views(tensors)]
    program = code.finished(
        Lowering(graph, given, [None, *code.sums_of(tensors[:first])]), (parts + of_rows,)
    )
    work = code.multiplications(program)
    twice = numbers.dtype == torch.float64
    target = code.Target("double" if twice else "float", vector_bytes(), vectors)
    (address,) = code.load([program], target)
    sizes = [x.numel() for x in tensors[:first]]
    native = extension.native()
    return native.LossCode(address, twice, len(numbers), parts, of_rows, sizes, work)


def _common_dtype(held: Held, rows: Sequence[Tensor]) -> torch.dtype:
    dtypes = {x.dtype for x in held.inputs[: held.differentiable]}
    if len(dtypes) != 1 or not dtypes <= set(REAL):
        raise NotCompilable(
            f"parameters must all be float32 or all float64, got "
            f"{', '.join(sorted(map(str, dtypes))) or 'none with gradients'}"
        )
    (dtype,) = dtypes
    for name, x in zip(held.names, held.inputs, strict=True):
        if x.device.type != "cpu":
            raise NotCompilable(f"{name} is on {x.device}")
        if x.is_floating_point() and x.dtype != dtype:
            raise NotCompilable(f"{name} is {x.dtype}, parameters {dtype}")
    for i, x in enumerate(rows):
        if x.dtype not in (dtype, torch.int64) or x.device.type != "cpu":
            raise NotCompilable(f"argument {i} is {x.dtype} on {x.device}, parameters {dtype}")
    return dtype


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """What a call may change, as BatchNorm does."""
    return [x.clone() for x in tensors]


def _some(rows: Sequence[Tensor], count: int) -> list[Tensor]:
    return [x[torch.arange(count) % len(x)] for x in rows]


def _check(
    held: Held,
    plain: Callable[..., Any],
    tensors: Sequence[Tensor],
    rows: Sequence[Tensor],
    draws: Sequence[Draw],
) -> bool:
    """Whether the loss of a batch is the mean of those of its samples; False for their sum.

    Raises:
        NotCompilable: it is neither, or a call changes something.
    """
    source = torch.Generator().manual_seed(0)
    batch = []
    for x in _some(rows, _SAMPLES):
        if x.is_floating_point():
            noise = torch.randn(x.shape, dtype=x.dtype, generator=source)
            x = x * (1 + 0.1 * noise) + 0.01 * noise
        batch.append(x)
    drawn = [
        (torch.randn if d.normal else torch.rand)(
            d.shape_of(_SAMPLES), dtype=d.dtype, generator=source
        )
        for d in draws
    ]

    def value(batch: Sequence[Tensor], drawn: Sequence[Tensor]) -> Tensor:
        given = _copies(tensors)
        before = [x._version for x in given]
        with drawing(draws, drawn), torch.autocast("cpu", enabled=False):
            found = plain(given, batch)
        for name, x, version in zip(held.names, given, before, strict=True):
            if x._version != version:
                raise NotCompilable(f"a call changes {name}, as batch normalisation does")
        scalars, _ = _scalars(found)
        return torch.stack([x.double() for x in (total_of(found), *scalars)])

    together, again = value(batch, drawn), value(batch, drawn)
    alone = torch.stack([
        value(
            [x[i : i + 1] for x in batch],
            [x.narrow(d.batch_dimension, i, 1) for d, x in zip(draws, drawn, strict=True)],
        )
        for i in range(_SAMPLES)
    ])  # fmt: skip
    name = held.changed_name()
    if name is not None:
        raise NotCompilable(f"a call changes its attribute {name!r}, which native code cannot do")
    close = {"rtol": 1e-4 if _single(tensors) else 1e-10, "atol": 1e-12}
    if not torch.allclose(together, again, rtol=0, atol=0, equal_nan=True):
        raise NotCompilable("two calls with the same numbers give different results")
    for mean, expected in ((True, alone.mean(0)), (False, alone.sum(0))):
        if torch.allclose(together, expected, equal_nan=True, **close):
            return mean
    raise NotCompilable(
        "the loss of a batch is neither the mean nor the sum of those of its samples (batch "
        "normalisation, a loss over pairs, a masked mean?)"
    )


def _single(tensors: Sequence[Tensor]) -> bool:
    return any(x.dtype == torch.float32 for x in tensors)


class _Classes(TorchFunctionMode):
    """Formulas for functions of class numbers that look at the values of these. What numbers there
    may be is noted in ``bounds``."""

    def __init__(self, bounds: list[int]):
        super().__init__()
        self._bounds = bounds

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.one_hot:
            return self._one_hot(*args, **kwargs)
        if func in (F.cross_entropy, F.nll_loss):
            return self._negative_log(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _hot(self, classes: Tensor, count: int) -> Tensor:
        self._bounds.append(count)
        return classes.unsqueeze(-1) == torch.arange(count)

    def _one_hot(self, input: Tensor, num_classes: int = -1) -> Tensor:
        if num_classes < 0:
            raise NotCompilable("one_hot needs the number of classes")
        return self._hot(input, num_classes).long()

    def _negative_log(self, func: Any, input: Tensor, target: Tensor, **options: Any) -> Tensor:
        if target.is_floating_point():
            return func(input, target, **options)
        reduction = options.pop("reduction", "mean")
        smoothing = options.pop("label_smoothing", 0.0)
        options.pop("ignore_index", None)
        if input.dim() != 2 or any(x is not None for x in options.values()):
            raise NotCompilable(f"{func.__name__} of logits [B, C], without weights, is known")
        logs = F.log_softmax(input, 1) if func is F.cross_entropy else input
        found = -torch.where(self._hot(target, input.shape[1]), logs, 0.0).sum(1)
        if smoothing:
            found = (1 - smoothing) * found - smoothing * logs.mean(1)
        return {"mean": found.mean, "sum": found.sum, "none": lambda: found}[reduction]()


@contextmanager
def _tracing(bounds: list[int]) -> Iterator[None]:
    """As torch.compile traces: formulas in place of ops, and no look at values."""
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True
    try:
        with _Classes(bounds):
            yield
    finally:
        torch.compiler._is_compiling_flag = before
