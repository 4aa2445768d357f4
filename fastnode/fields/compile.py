"""Any field that treats samples alone as native code inside the solve."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastnode import extension
from fastnode.engines.fused import request as fused_request
from fastnode.engines.fused.generated import WHOLE, Form, Formulas, keep_formulas
from fastnode.engines.fused.mlp import read_layers
from fastnode.errors import NotCompilable
from fastnode.fields.errors import find_line
from fastnode.fields.held import REAL, FunctionField, Held
from fastnode.fields.signature import Signature
from fastnode.nn.compiled import MAKERS
from fastnode.ops.dispatch import transformed
from fastnode.problem.batch import SampleLayout
from fastnode.problem.ivp import State

if TYPE_CHECKING:
    # What makes code is imported when a field is compiled, as few programs do.
    from fastnode.fields.trace import Traced

__all__ = ["CompiledField", "compile_field"]

#: A time at which fields can be called, unless the caller says another one.
_TIME = 0.37
#: Batches below it are solved one sample after the other, its features side by side.
_FEW = 4
#: What a tile of two vectors costs in units of two tiles of one.
_TWO_VECTORS = 0.88
#: Bytes in a vector, by the number of the instruction set.
_BYTES = (16, 32, 64)


class CompiledField(nn.Module):
    """A module and its native code; made by ``compile_field``.

    Args:
        module: what is solved.
        time: at which it can be called.
        required: whether solves raise where there is no code for them because the module is not
            one that can be compiled.
    """

    #: Engines look for it: see engines/fused/mlp.py.
    perceptron = None

    def __init__(self, module: nn.Module, time: float = _TIME, required: bool = False):
        super().__init__()
        self.module, self._time, self.required = module, time, required
        self._codes = _Codes()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Python's own, as ``__deepcopy__``, would make a module of what is its compiled form.
            if name.startswith("__"):
                raise
            return getattr(super().__getattr__("module"), name)

    def __getstate__(self) -> dict[str, Any]:
        # Code is this process's; a copy compiles, or finds it in the cache, when it is solved.
        return {**self.__dict__, "_codes": _Codes()}

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Those of the module; of a function the tensors it reads that require a gradient."""
        if isinstance(self.module, FunctionField):
            found: list[Any] = self._current().inputs
            return iter([x for x in found if x.requires_grad])
        return super().parameters(recurse)

    def check(self, y0: Tensor) -> None:
        """Raises NotCompilable if there can be no code for such a state: here, where a solve that
        another engine runs asks for none."""
        if y0.device.type != "cpu" or transformed():
            return
        if not extension.AVAILABLE:
            raise NotCompilable("fastnode was installed without its native extension")
        if y0.dtype not in REAL or y0.dim() < 2:
            raise NotCompilable(
                f"a state must be [B, ...] of float32 or float64, got {tuple(y0.shape)} of "
                f"{y0.dtype}"
            )
        # What is found is kept: a solve then looks it up.
        wanted = (y0.requires_grad or None) if torch.is_grad_enabled() else False
        self.native_field(y0, wanted, False)

    def may_be_captured(self) -> bool:
        """Whether no CUDA graph failed to capture the module as it is."""
        return self._known().capturable

    def cannot_be_captured(self) -> None:
        """One failed."""
        self._known().capturable = False

    def _current(self) -> Held:
        """What the module holds now."""
        held = self._known().held
        assert held is not None
        return held

    def _known(self) -> _Codes:
        """What is known of the module as it is."""
        codes = self._codes
        if codes.held is None or codes.held.is_outdated():
            codes = self._codes = _Codes(Held.of(self.module))
        return codes

    def native_field(
        self, y0: Tensor, gradients: bool | None, per_sample: bool, form: Form = WHOLE
    ) -> tuple[list[Tensor], int] | None:
        """The tensors that the code reads, and its number for such a state; None where calling the
        module is more than calling its forward.

        Args:
            y0: [B, *shape of a sample], or [B, D] in the form of rows.
            gradients: whether a VJP is needed; None if it is where a tensor that the module holds
                has a gradient.
            per_sample: whether each sample has a time of its own.
            form: how the module is called.

        Raises:
            NotCompilable: the field cannot be compiled for this state.
        """
        if y0.dtype not in REAL or y0.dim() < 2 or y0.numel() == 0 or y0.device.type != "cpu":
            return None
        codes = self._known()
        held = codes.held
        assert held is not None
        if read_layers([self, *held.inside], []) is None:
            return None
        if gradients is None:
            gradients = any(x.requires_grad for x in held.inputs[: held.differentiable])
        vectors = vectors_of(len(y0), y0.dtype)
        known = None if form is WHOLE else Signature.key(form, gradients)
        key = vectors, y0.shape[1:], y0.dtype, gradients, per_sample, known
        found = codes.numbers.get((fused_request.INSTRUCTIONS, key))
        if found is None:
            try:
                found = self._compile(codes, held, y0, key, form)
            except NotCompilable as error:
                # Kept as well: it takes as long to find out each time.
                found = error
            codes.numbers[fused_request.INSTRUCTIONS, key] = found
        if isinstance(found, NotCompilable):
            raise found
        if not form.args:
            return held.inputs, found
        return Signature.of(held, form, gradients).joined(held.inputs, form.args), found

    def _compile(self, codes: _Codes, held: Held, y0: Tensor, key: Any, form: Form) -> int:
        from fastnode.fields.code import Target, build

        vectors, shape, _, gradients, per_sample, known = key
        signature = Signature.of(held, form, gradients)
        inputs = signature.joined(held.inputs, form.args)
        try:
            traced = codes.traced.get((shape, y0.dtype, known))
            if traced is None:
                traced = _trace(held, signature, inputs, y0)
                _check(held, signature, inputs, y0, self._time)
                codes.traced[shape, y0.dtype, known] = traced
            number = "float" if y0.dtype == torch.float32 else "double"
            target = Target(number, vector_bytes(), vectors, per_sample)
            counted = signature.differentiable
            made = build(traced, inputs, counted, shape, _ends(form.layout), target, gradients)
        except NotCompilable as error:
            if error.operation is None:
                raise

            def call() -> None:
                t = torch.tensor(self._time, dtype=y0.dtype)
                signature.call(held.module, inputs, t, y0.detach().clone())

            raise NotCompilable(f"{error.reason}{find_line(error.operation, call)}") from error
        keep_formulas(made, held.module, Formulas(signature.evaluate, held.fixed))
        return made


@dataclass(eq=False)
class _Codes:
    """What was compiled of a module as it was."""

    held: Held | None = None
    #: The number of the code, or why there is none, by what it was made for.
    numbers: dict[Any, int | NotCompilable] = field(default_factory=dict)
    traced: dict[Any, Traced] = field(default_factory=dict)
    #: Whether a CUDA graph may hold it, as far as is known.
    capturable: bool = True


def compile_field(
    field: Callable[..., Any],
    y0: State,
    t: Tensor | float | None = None,
    *,
    args: Sequence[Any] = (),
    adjoint_params: Sequence[Tensor] = (),
) -> CompiledField:
    """A field that is solved by native code generated from ``field``.

    ``field(t, y, *args)`` must treat samples alone: row i of the result depends on row i of y, on
    t, on args and on the tensors that the field holds. It is traced for one sample; C++ is
    generated from the trace, with samples in the lanes of vectors, and compiled for this machine.
    The result calls ``field`` and shares its parameters: train either. ``odeint``, ``solve``,
    ``odeint_adjoint`` and modules that solve take it; solves that native code does not know run on
    other engines. On a GPU no code is generated: adaptive solves go to the engine "graph" where it
    can run them.

    Args:
        field: an nn.Module with ``forward(t, y, *args)``, t a tensor without dimensions; or a
            function. The tensors that a function closes over, those in its global variables and
            what these hold are found; others are refused unless adjoint_params names them.
        y0: a state as it will be solved, [B, *shape of a sample], float32 or float64, or a tuple of
            such with one B. Code for another batch, dtype or form is made when a solve needs it.
        t: a time at which the field can be called, for the checks; 0.37 if None.
        args: further arguments as they will be given: numbers, which become part of the code, and
            floating tensors that all samples share, which are read at each solve.
        adjoint_params: of a function, tensors that it reads where they cannot be found.

    Raises:
        NotCompilable: the field draws random numbers, mixes samples, decides in Python by a
            tensor's value, changes what it is given or holds, or uses an operation without code;
            there is no compiler, or it failed. The message says what and, where it is known, at
            which line.
        TypeError, ValueError: an argument is wrong.
    """
    if isinstance(field, CompiledField):
        return field
    if not callable(field):
        raise TypeError(f"field must be an nn.Module or a function, got {type(field).__name__}")
    declared = tuple(adjoint_params)
    for i, x in enumerate(declared):
        if not isinstance(x, Tensor):
            raise TypeError(f"adjoint_params[{i}] must be a tensor, got {type(x).__name__}")
    if isinstance(field, nn.Module):
        if declared:
            raise ValueError(
                "adjoint_params go together with a function; the tensors of a module are its "
                "parameters and buffers"
            )
        module = field
    else:
        module = FunctionField(field, declared)
    layout, packed = _checked_state(y0)
    if not extension.AVAILABLE:
        raise NotCompilable("fastnode was installed without its native extension")
    compiled = CompiledField(module, _TIME if t is None else float(t))
    if packed.device.type != "cpu":
        # The engine "graph" makes its checks, and captures the field, at the first solve.
        return compiled
    needs = _any_gradient(packed, *compiled.parameters(), *args)
    form = WHOLE if layout is None and not args else Form(layout, tuple(args))
    if compiled.native_field(packed, needs, False, form) is None:
        raise NotCompilable("a module inside has hooks, or a tensor of the state has no elements")
    return compiled


def _any_gradient(*held: Any) -> bool:
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in held)


def _checked_state(y0: Any) -> tuple[SampleLayout | None, Tensor]:
    """The form of a tuple's samples, and the state as it is or in rows."""
    parts = y0 if isinstance(y0, tuple) else (y0,)
    if not parts:
        raise ValueError("y0 must hold at least one tensor, got an empty tuple")
    for part in parts:
        if not isinstance(part, Tensor) or part.dtype not in REAL:
            kind = part.dtype if isinstance(part, Tensor) else type(part).__name__
            raise TypeError(f"y0 must be of tensors of float32 or float64, got {kind}")
        if part.device.type not in ("cpu", "cuda") or part.device != parts[0].device:
            raise ValueError(f"y0 must be on the CPU or on one GPU, got {part.device}")
    shapes = ", ".join(str(tuple(part.shape)) for part in parts)
    if not isinstance(y0, tuple):
        if y0.dim() < 2 or y0.numel() == 0:
            raise ValueError(f"y0 must be [B, ...] with samples in rows, got shape {shapes}")
        return None, y0
    batches = {part.shape[:1] for part in parts}
    if len(batches) > 1 or any(part.dim() < 1 or part.numel() == 0 for part in parts):
        raise ValueError(f"y0 must be of tensors [B, ...] with one B, got shapes {shapes}")
    layout = SampleLayout(tuple(part.shape[1:] for part in parts), True)
    return layout, layout.pack(y0)


def evaluate(module: nn.Module, y: Tensor, t: float) -> Tensor:
    """The value of a field at one time, by its native code: what a solve evaluates."""
    found = compile_field(module, y).native_field(y, False, False)
    assert found is not None
    held, number = found
    return extension.native().generated_value(held, number, t, y, fused_request.INSTRUCTIONS)


def vector_bytes() -> int:
    """Of the instruction set for which code is generated."""
    return _BYTES[fused_request.INSTRUCTIONS]


def vectors_of(batch: int, dtype: torch.dtype) -> int:
    """Vectors of samples in a tile; 0 for one sample at a time."""
    if batch < _FEW:
        return 0
    lanes = vector_bytes() // dtype.itemsize
    twos = 2 * _TWO_VECTORS * math.ceil(batch / (2 * lanes))
    return 2 if twos <= math.ceil(batch / lanes) else 1


def _ends(layout: SampleLayout | None) -> list[int]:
    """Where the tensors of a tuple end in a row; none of one tensor alone."""
    if layout is None or len(layout.shapes) == 1:
        return []
    return list(accumulate(layout.sizes))


def _trace(held: Held, signature: Signature, inputs: Sequence[Tensor], y0: Tensor) -> Traced:
    from fastnode.fields.trace import trace

    def call(t: Tensor, y: Tensor, *inputs: Tensor) -> Tensor:
        one = y.unsqueeze(0)
        return signature.packed(signature.call(held.module, inputs, t, one), one).squeeze(0)

    for name, x in zip(signature.names(), inputs, strict=True):
        if x.is_floating_point() and x.dtype != y0.dtype:
            raise NotCompilable(f"{name} is {x.dtype} and the state {y0.dtype}")
        if x.device.type != "cpu":
            raise NotCompilable(f"{name} is on {x.device}")
    y = y0.detach()[0].clone()
    t = torch.zeros((), dtype=y.dtype)
    return trace(call, y, t, inputs, signature.differentiable)


@torch.no_grad()
def _check(
    held: Held, signature: Signature, inputs: Sequence[Tensor], y0: Tensor, time: float
) -> None:
    """Whether the module treats samples alone, and calling it changes nothing."""
    # Near the samples that were given, where the field is defined, but no two alike.
    rows = y0.detach()[torch.arange(5) % len(y0)]
    noise = torch.randn(rows.shape, dtype=rows.dtype, generator=torch.Generator().manual_seed(0))
    y = rows * (1 + 0.1 * noise) + 0.01 * noise
    t = torch.tensor(time, dtype=y0.dtype)
    versions = [_version(x) for x in inputs]
    given = y.clone()

    def call(y: Tensor) -> Tensor:
        try:
            with torch.autocast("cpu", enabled=False):
                found = signature.plain_call(held.module, inputs, t, y)
        except RuntimeError as error:
            if not signature.hint:
                raise
            raise NotCompilable(
                f"called with {len(y)} samples it raises {error}{signature.hint}"
            ) from error
        return signature.packed(found, y)

    together, again = call(given), call(given)
    alone = torch.cat([call(row[None]) for row in y])
    if not torch.allclose(given, y, rtol=0, atol=0, equal_nan=True):
        raise NotCompilable("it changes the state that it is given in place; work on a copy")
    if not torch.allclose(together, again, rtol=0, atol=0, equal_nan=True):
        raise NotCompilable("two calls at the same point give different results")
    name = held.changed_name()
    if name is not None:
        raise NotCompilable(f"a call changes its attribute {name!r}, which native code cannot do")
    for name, x, version in zip(signature.names(), inputs, versions, strict=True):
        if _version(x) != version:
            raise NotCompilable(f"a call changes {name}, a tensor that it holds")
    close = 1e-4 if y0.dtype == torch.float32 else 1e-10
    scale = together.nan_to_num().abs().max().clamp(min=1)
    if not torch.allclose(together, alone, rtol=0, atol=float(close * scale), equal_nan=True):
        raise NotCompilable(
            "samples depend on each other (a mean over the batch, batch normalisation in training "
            f"mode?): a batch gives other results than its samples one by one{signature.hint}"
        )


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


MAKERS.append(functools.partial(CompiledField, required=True))
