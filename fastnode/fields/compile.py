"""Any field that treats samples alone as native code inside the solve."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastnode import extension
from fastnode.engines.fused import request as fused_request
from fastnode.engines.fused.mlp import read_layers
from fastnode.engines.held_values import Place, changed
from fastnode.errors import NotCompilable
from fastnode.fields.errors import find_line

if TYPE_CHECKING:
    # What makes code is imported when a field is compiled, as few programs do.
    from fastnode.fields.trace import Traced

__all__ = ["CompiledField", "compile_field"]

_REAL = (torch.float32, torch.float64)
#: Batches below it are solved one sample after the other, its features side by side.
_FEW = 4
#: What a tile of two vectors costs in units of two tiles of one.
_TWO_VECTORS = 0.88
_PLAIN = (bool, int, float, str, type(None))
#: Bytes in a vector, by the number of the instruction set.
_BYTES = (16, 32, 64)


class CompiledField(nn.Module):
    """A module and its native code; made by ``compile_field``."""

    #: Engines look for it: see engines/fused/mlp.py.
    perceptron = None

    def __init__(self, module: nn.Module, time: float):
        super().__init__()
        self.module, self._time = module, time
        self._codes = _Codes()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def __getstate__(self) -> dict[str, Any]:
        # Code is this process's; a copy compiles, or finds it in the cache, when it is solved.
        return {**self.__dict__, "_codes": _Codes()}

    def native_field(
        self, y0: Tensor, gradients: bool | None, per_sample: bool
    ) -> tuple[list[Tensor], int] | None:
        """The tensors that the module holds, and the number of its code for such a state; None
        where calling the module is more than calling its forward.

        Args:
            y0: [B, *shape of a sample].
            gradients: whether a VJP is needed; None if it is where a tensor that the module holds
                has a gradient.
            per_sample: whether each sample has a time of its own.

        Raises:
            NotCompilable: the field cannot be compiled for this state.
        """
        if y0.dtype not in _REAL or y0.dim() < 2 or y0.numel() == 0 or y0.device.type != "cpu":
            return None
        codes = self._codes
        if not codes.inside or changed(codes.places) or codes.misses_gradients():
            codes = self._codes = _Codes.of(self.module)
        if read_layers([self, *codes.inside], []) is None:
            return None
        if gradients is None:
            gradients = any(x.requires_grad for x in codes.inputs[: codes.differentiable])
        vectors = _vectors(y0)
        key = vectors, y0.shape[1:], y0.dtype, gradients, per_sample, fused_request.INSTRUCTIONS
        found = codes.numbers.get(key)
        if found is None:
            try:
                found = self._compile(codes, y0, vectors, per_sample, gradients)
            except NotCompilable as error:
                # Kept as well: it takes as long to find out each time.
                found = error
            codes.numbers[key] = found
        if isinstance(found, NotCompilable):
            raise found
        return codes.inputs, found

    def _compile(
        self, codes: _Codes, y0: Tensor, vectors: int, per_sample: bool, gradients: bool
    ) -> int:
        from fastnode.fields.code import Target, build

        shape = y0.shape[1:]
        try:
            traced = codes.traced.get((shape, y0.dtype))
            if traced is None:
                traced = _trace(self.module, codes, y0)
                _check(self.module, codes, y0, self._time)
                codes.traced[shape, y0.dtype] = traced
            number = "float" if y0.dtype == torch.float32 else "double"
            level = fused_request.INSTRUCTIONS
            target = Target(number, _BYTES[level], vectors, per_sample)
            return build(traced, codes.inputs, codes.differentiable, shape, target, gradients)
        except NotCompilable as error:
            if error.operation is None:
                raise
            line = find_line(error.operation, self.module, y0, self._time)
            raise NotCompilable(f"{error.reason}{line}") from error


@dataclass(eq=False)
class _Codes:
    """What was compiled of a module as it was, and what that depends on."""

    #: The number of the code, or why there is none, by what it was made for.
    numbers: dict[Any, int | NotCompilable] = field(default_factory=dict)
    traced: dict[Any, Traced] = field(default_factory=dict)
    inside: list[nn.Module] = field(default_factory=list)
    #: Where modules, tensors and plain values stood: others in their place ask for new code.
    places: list[Place] = field(default_factory=list)
    #: How many attributes each module had.
    counts: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    #: The tensors that the module holds: those with gradients first.
    inputs: list[Tensor] = field(default_factory=list)
    differentiable: int = 0

    def misses_gradients(self) -> bool:
        """Whether a tensor that had no gradient when it was looked at has one now."""
        return any(x.requires_grad for x in self.inputs[self.differentiable :])

    @classmethod
    def of(cls, module: nn.Module) -> _Codes:
        held = [*module.named_parameters(), *module.named_buffers()]
        first = [(n, x) for n, x in held if _may_have_gradient(x)]
        rest = [(n, x) for n, x in held if not any(x is y for _, y in first)]
        places: list[Place] = []
        for each in module.modules():
            for part in (each._parameters, each._buffers, each._modules):
                places += [(part, name, value) for name, value in part.items()]
            own = each.__dict__
            places += [
                (own, name, value)
                for name, value in own.items()
                if isinstance(value, _PLAIN) and not name.startswith("_")
            ]
        # Indices are part of the code.
        places += [
            (x, None, x._version)
            for _, x in rest
            if not (x.is_floating_point() or x.is_inference())
        ]
        return cls(
            inside=list(module.modules()),
            places=places,
            counts=[len(each.__dict__) for each in module.modules()],
            names=[name for name, _ in (*first, *rest)],
            inputs=[x for _, x in (*first, *rest)],
            differentiable=len(first),
        )


def compile_field(module: nn.Module, y0: Tensor, t: Tensor | float | None = None) -> CompiledField:
    """A field that is solved by native code generated from ``module``.

    ``module(t, y)`` must treat samples alone: row i of the result depends on row i of y, on t and
    on the tensors that the module holds. It is traced for one sample; C++ is generated from the
    trace, with samples in the lanes of vectors, and compiled for this machine. The result calls
    ``module`` and shares its parameters: train either. ``odeint``, ``solve``, ``odeint_adjoint``
    and modules that solve take it; solves that native code does not know run on other engines.

    Args:
        module: an nn.Module with ``forward(t, y)``, t a tensor without dimensions.
        y0: a state as it will be solved, [B, *shape of a sample], float32 or float64, on the CPU.
            Code for another batch or dtype is made when a solve needs it.
        t: a time at which the module can be called, for the checks; 0.37 if None.

    Raises:
        NotCompilable: the field draws random numbers, mixes samples, decides in Python by a
            tensor's value, changes what it is given or holds, or uses an operation without code;
            there is no compiler, or it failed. The message says what and, where it is known, at
            which line.
        TypeError, ValueError: an argument is wrong.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be an nn.Module, got {type(module).__name__}")
    if isinstance(module, CompiledField):
        return module
    if not isinstance(y0, Tensor) or y0.dtype not in _REAL:
        kind = y0.dtype if isinstance(y0, Tensor) else type(y0).__name__
        raise TypeError(f"y0 must be a tensor of float32 or float64, got {kind}")
    if y0.dim() < 2 or y0.numel() == 0:
        raise ValueError(f"y0 must be [B, ...] with samples in rows, got shape {tuple(y0.shape)}")
    if y0.device.type != "cpu":
        raise ValueError(f"y0 must be on the CPU, got {y0.device}; on a GPU use engine='graph'")
    if not extension.AVAILABLE:
        raise NotCompilable("fastnode was installed without its native extension")
    time = 0.37 if t is None else float(t)
    compiled = CompiledField(module, time)
    gradients = (y0.requires_grad or None) if torch.is_grad_enabled() else False
    if compiled.native_field(y0, gradients, False) is None:
        raise NotCompilable("a module inside has hooks")
    return compiled


def evaluate(module: nn.Module, y: Tensor, t: float) -> Tensor:
    """The value of a field at one time, by its native code: what a solve evaluates."""
    found = compile_field(module, y).native_field(y, False, False)
    assert found is not None
    held, number = found
    return extension.native().generated_value(held, number, t, y, fused_request.INSTRUCTIONS)


def _may_have_gradient(x: Tensor) -> bool:
    # Under torch.func.functional_call plain tensors stand where parameters do.
    return x.dtype in _REAL and (isinstance(x, nn.Parameter) or x.requires_grad)


def _vectors(y0: Tensor) -> int:
    """Vectors of samples in a tile; 0 for one sample at a time."""
    batch = y0.shape[0]
    if batch < _FEW:
        return 0
    lanes = _BYTES[fused_request.INSTRUCTIONS] // y0.element_size()
    twos = 2 * _TWO_VECTORS * math.ceil(batch / (2 * lanes))
    return 2 if twos <= math.ceil(batch / lanes) else 1


def _trace(module: nn.Module, codes: _Codes, y0: Tensor) -> Traced:
    from fastnode.fields.trace import trace

    def call(t: Tensor, y: Tensor, *inputs: Tensor) -> Tensor:
        held = dict(zip(codes.names, inputs, strict=True))
        found = functional_call(module, held, (t, y.unsqueeze(0)))
        if not isinstance(found, Tensor):
            raise NotCompilable(f"it returns {type(found).__name__}, not a tensor")
        if found.shape != (1, *y.shape) or found.dtype != y.dtype:
            raise NotCompilable(
                f"for one sample of shape {tuple(y.shape)} and {y.dtype} it returns "
                f"{tuple(found.shape)[1:]} and {found.dtype}"
            )
        return found.squeeze(0)

    for name, x in zip(codes.names, codes.inputs, strict=True):
        if x.is_floating_point() and x.dtype != y0.dtype:
            raise NotCompilable(f"{name} is {x.dtype} and the state {y0.dtype}")
        if x.device.type != "cpu":
            raise NotCompilable(f"{name} is on {x.device}")
    y = y0.detach()[0].clone()
    t = torch.zeros((), dtype=y.dtype)
    return trace(call, y, t, codes.inputs, codes.differentiable)


@torch.no_grad()
def _check(module: nn.Module, codes: _Codes, y0: Tensor, time: float) -> None:
    """Whether the module treats samples alone, and calling it changes nothing."""
    # Near the samples that were given, where the field is defined, but no two alike.
    rows = y0.detach()[torch.arange(5) % len(y0)]
    noise = torch.randn(rows.shape, dtype=rows.dtype, generator=torch.Generator().manual_seed(0))
    y = rows * (1 + 0.1 * noise) + 0.01 * noise
    t = torch.tensor(time, dtype=y0.dtype)
    versions = [0 if x.is_inference() else x._version for x in codes.inputs]
    given = y.clone()
    together, again = module(t, given), module(t, given)
    alone = torch.cat([module(t, row[None]) for row in y])
    if not torch.allclose(given, y, rtol=0, atol=0, equal_nan=True):
        raise NotCompilable("it changes the state that it is given in place; work on a copy")
    if not torch.allclose(together, again, rtol=0, atol=0, equal_nan=True):
        raise NotCompilable("two calls at the same point give different results")
    name = next((name for holder, name, x in codes.places if changed([(holder, name, x)])), None)
    if codes.counts != [len(each.__dict__) for each in codes.inside]:
        name = "new"
    if name is not None:
        raise NotCompilable(f"a call changes its attribute {name!r}, which native code cannot do")
    for name, x, version in zip(codes.names, codes.inputs, versions, strict=True):
        if not x.is_inference() and x._version != version:
            raise NotCompilable(f"a call changes {name}, a tensor that it holds")
    close = 1e-4 if y0.dtype == torch.float32 else 1e-10
    scale = together.nan_to_num().abs().max().clamp(min=1)
    if not torch.allclose(together, alone, rtol=0, atol=float(close * scale), equal_nan=True):
        raise NotCompilable(
            "samples depend on each other (a mean over the batch, batch normalisation in training "
            "mode?): a batch gives other results than its samples one by one"
        )
