"""Reads a multilayer perceptron in the graph of a module."""

from __future__ import annotations

import inspect
import math
import operator
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.proxy import TraceError

from fastnode.nn.fields import MAX_DEPTH, MLPField, TimeLinear


class NotFusable(ValueError):
    """A module is no multilayer perceptron of (t, y) that ``fastnode.fuse`` knows.

    Attributes:
        operation: the first operation that stands in the way, as the module's code has it.
    """

    def __init__(self, message: str, operation: str):
        super().__init__(message)
        self.operation = operation


MODULES: dict[type[nn.Module], str] = {
    nn.ELU: "elu",
    nn.GELU: "gelu",
    nn.LeakyReLU: "leaky_relu",
    nn.ReLU: "relu",
    nn.SELU: "selu",
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "silu",
    nn.Softplus: "softplus",
    nn.Tanh: "tanh",
}
FUNCTIONS: dict[Any, str] = {
    F.elu: "elu",
    F.gelu: "gelu",
    F.leaky_relu: "leaky_relu",
    F.relu: "relu",
    torch.relu: "relu",
    F.selu: "selu",
    torch.selu: "selu",
    torch.sigmoid: "sigmoid",
    F.sigmoid: "sigmoid",
    F.silu: "silu",
    torch.sin: "sin",
    F.softplus: "softplus",
    torch.tanh: "tanh",
    F.tanh: "tanh",
}
METHODS = {name: name for name in ("relu", "sigmoid", "sin", "tanh")}
#: Options of activations, in their order, as the kernels have them.
OPTIONS: dict[str, dict[str, Any]] = {
    "elu": {"alpha": 1.0},
    "gelu": {"approximate": "none"},
    "leaky_relu": {"negative_slope": 0.01},
    "softplus": {"beta": 1.0, "threshold": 20.0},
}
DROPOUTS = (nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout)
DROPOUT_FUNCTIONS = (F.dropout, F.alpha_dropout, F.feature_alpha_dropout)
#: Operations that move a time or a column of ones about without changing a number in it.
SHAPES = ("expand", "expand_as", "view", "reshape", "unsqueeze", "repeat", "to", "type_as", "float")
#: Functions that make tensors; in a trace, their sizes are proxies, not numbers.
FACTORIES = (torch.ones, torch.zeros, torch.full, torch.as_tensor)


class _Time:
    """The time, in any shape."""


class _Ones:
    """Ones in any shape."""


class _Zeros:
    """Zeros in any shape."""


class _Size:
    """A size, a shape or a part of the state that only its shape is wanted of."""


@dataclass(frozen=True)
class Layer:
    """A linear layer of ``before`` times the state and of the time, which is appended to its input
    ``first``, ``last`` or (None) nowhere; ``after`` times its result goes on."""

    module: nn.Module
    column: str | None
    before: float = 1.0
    after: float = 1.0


@dataclass(frozen=True)
class _State:
    """``scale`` times the state after so many layers; ``column`` is where the time has been
    appended to it."""

    layers: tuple[Layer, ...] = ()
    active: bool = True
    column: str | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Net:
    """Linear layers with an activation between them. ``last`` is None, or what the activation of
    the last layer's result is multiplied with."""

    layers: tuple[Layer, ...]
    activation: str
    last: float | None


class _Call(nn.Module):
    """Calls a field as solvers do, whatever else its forward takes."""

    def __init__(self, field: nn.Module):
        super().__init__()
        self.field = field

    def forward(self, t: Any, y: Any) -> Any:
        return self.field(t, y)


class _Tracer(fx.Tracer):
    """Sees layers that know the time, and whole perceptrons, as one operation."""

    def __init__(self, field: nn.Module):
        super().__init__(autowrap_functions=FACTORIES)
        self._autowrap_search.append(torch)  # pyright: ignore[reportArgumentType]
        self.field = field
        self.modes = _modes()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m is self.field:
            return False
        fields = isinstance(m, (TimeLinear, MLPField))
        return fields or super().is_leaf_module(m, module_qualified_name)

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, target, *args, **kwargs)
        if kind not in ("placeholder", "output") and _modes() != self.modes:
            _refuse(node, "an operation under torch.no_grad or torch.autocast")
        return node


def _modes() -> tuple[bool, ...]:
    """What a block of Python may set for the operations in it, and no graph records."""
    cast = (torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda"))
    return torch.is_grad_enabled(), *cast


def read_net(module: nn.Module) -> Net:
    """The perceptron that calling ``module`` with (t, y) computes.

    Raises:
        NotFusable: it is none.
    """
    try:
        inspect.signature(module.forward).bind(None, None)
    except TypeError:
        names = ", ".join(inspect.signature(module.forward).parameters)
        raise NotFusable(f"forward must take (t, y), got ({names})", "forward") from None
    root = _Call(module)
    try:
        with torch.enable_grad():
            graph = _Tracer(module).trace(root)
    except NotFusable:
        raise
    except (TraceError, TypeError, RuntimeError, AttributeError, ValueError, LookupError) as error:
        raise _untraceable(error) from error
    return _Reader(root, graph).read()


class _Reader:
    """Follows the graph of a module from (t, y) to a perceptron."""

    def __init__(self, root: nn.Module, graph: fx.Graph):
        self.modules = dict(root.named_modules(remove_duplicate=False))
        self.graph = graph
        self.values: dict[fx.Node, Any] = {}
        self.activation: str | None = None

    def read(self) -> Net:
        t, y = (node for node in self.graph.nodes if node.op == "placeholder")
        self.values = {t: _Time(), y: _State()}
        for node in self.graph.nodes:
            if node.op == "output":
                return self._net(node, self._value(node.args[0]))
            if node.op != "placeholder":
                self.values[node] = self._step(node)
        raise AssertionError("a graph without an output")

    def _net(self, node: fx.Node, result: Any) -> Net:
        if not isinstance(result, _State) or not result.layers or result.column:
            _refuse(node, "what forward returns is not a linear layer's result")
        last = result.scale if result.active else None
        layers = result.layers if result.active else _scaled(result).layers
        if len(layers) + (last is not None) > MAX_DEPTH:
            _refuse(node, f"more than {MAX_DEPTH} linear layers, a last activation being one")
        return Net(layers, self.activation or "tanh", last)

    def _value(self, arg: Any) -> Any:
        return self.values[arg] if isinstance(arg, fx.Node) else arg

    def _step(self, node: fx.Node) -> Any:
        args = [self._value(arg) for arg in node.args]
        if node.op == "call_module":
            return self._module(node, self.modules[str(node.target)], args)
        if node.op == "get_attr":
            _refuse(node, "parameters of layers other than nn.Linear")
        if node.op == "call_method":
            return self._method(node, str(node.target), args)
        return self._function(node, node.target, args)

    def _module(self, node: fx.Node, module: Any, args: list[Any]) -> Any:
        kind = type(module)
        if kind is nn.Identity:
            return args[0]
        if kind is nn.Linear and len(args) == 1:
            return self._linear(node, module, args[0], None)
        if kind is TimeLinear and isinstance(args[0], _Time):
            return self._linear(node, module, args[1], "last")
        if kind is MLPField and isinstance(args[0], _Time) and _is_input(args[1]):
            self._activate(node, module.activation)
            state = args[1]
            for i, layer in enumerate(module.layers):
                timed = "last" if isinstance(layer, TimeLinear) else None
                state = self._linear(node, layer, state, timed)
                if i + 1 < len(module.layers):
                    state = _State(state.layers)
            return state
        if kind in MODULES and len(args) == 1:
            name = MODULES[kind]
            given = {option: getattr(module, option) for option in OPTIONS.get(name, ())}
            return self._activation(node, name, args[0], given)
        if kind in DROPOUTS and len(args) == 1:
            return self._dropout(node, args[0], module.p, module.training)
        _refuse(node, f"a module of type {kind.__name__}")

    def _linear(self, node: fx.Node, module: nn.Module, state: Any, column: str | None) -> _State:
        if not isinstance(state, _State):
            _refuse(node, "a linear layer of something else than the state")
        if not state.active:
            _refuse(node, "two linear layers without an activation between them")
        layer = Layer(module, column or state.column, before=state.scale)
        return _State((*state.layers, layer), active=False)

    def _activate(self, node: fx.Node, name: str) -> None:
        if self.activation not in (None, name):
            _refuse(node, f"{name} beside {self.activation}: all activations must be the same")
        self.activation = name

    def _activation(self, node: fx.Node, name: str, state: Any, given: Mapping[str, Any]) -> Any:
        if not isinstance(state, _State) or state.active or state.column:
            _refuse(node, "an activation of something else than a linear layer's result")
        self._activate(node, name)
        options, sharpness = dict(given), 1.0
        if name == "softplus" and options.get("beta", 0) > 0:
            # softplus of beta x, over beta.
            sharpness = options.pop("beta")
        for option, value in options.items():
            if value != OPTIONS.get(name, {}).get(option):
                _refuse(node, f"an activation with options of its own, {option}={value}")
        layers = _scaled(replace(state, scale=state.scale * sharpness)).layers
        return _State(layers, scale=1 / sharpness)

    def _dropout(self, node: fx.Node, state: Any, p: float, training: bool) -> Any:
        if training and p:
            _refuse(node, "dropout in training mode")
        return state

    def _method(self, node: fx.Node, name: str, args: list[Any]) -> Any:
        value = args[0]
        if name in METHODS and len(args) == 1 and isinstance(value, _State):
            return self._activation(node, name, value, {})
        if isinstance(value, (_Time, _Ones, _Zeros)) and name in SHAPES:
            return value
        if isinstance(value, (_State, _Size, _Time)) and name in ("size", "dim", "numel"):
            return _Size()
        if name in ("new_ones", "new_zeros") and isinstance(value, (_State, _Size)):
            return _Ones() if name == "new_ones" else _Zeros()
        if name == "new_full" and isinstance(self._filling(node, args[2:]), _Time):
            return _Time()
        if name in _BY_NAME and len(args) <= 2 and not node.kwargs:
            return self._arithmetic(node, _BY_NAME[name], args)
        _refuse(node, "an operation that no perceptron has")

    def _function(self, node: fx.Node, target: Any, args: list[Any]) -> Any:
        value = args[0] if args else None
        if target is getattr and args[1] in ("shape", "device", "dtype", "ndim"):
            return _Size()
        if target is operator.getitem and isinstance(value, (_Size, _Ones, _Zeros, _Time)):
            return value
        if target is operator.getitem and isinstance(value, _State) and not value.column:
            return _Size()
        if target in (torch.ones_like, torch.ones) and not isinstance(value, _Time):
            return _Ones()
        if target in (torch.zeros_like, torch.zeros) and not isinstance(value, _Time):
            return _Zeros()
        by_filling = target in (torch.full_like, torch.full)
        if by_filling and isinstance(self._filling(node, args[1:]), _Time):
            return _Time()
        if target is torch.as_tensor and isinstance(value, _Time):
            return value
        if target in (torch.cat, torch.concat, torch.concatenate):
            return self._cat(node, args)
        if target in FUNCTIONS and isinstance(value, _State):
            name = FUNCTIONS[target]
            return self._activation(node, name, value, _options(name, args[1:], node.kwargs))
        if target in DROPOUT_FUNCTIONS:
            given = inspect.signature(F.dropout).bind(*args, **node.kwargs)
            given.apply_defaults()
            return self._dropout(node, value, given.arguments["p"], given.arguments["training"])
        if target in _BY_FUNCTION and not node.kwargs:
            return self._arithmetic(node, _BY_FUNCTION[target], args)
        _refuse(node, "an operation that no perceptron has")

    def _filling(self, node: fx.Node, args: list[Any]) -> Any:
        return args[0] if args else self._value(node.kwargs.get("fill_value"))

    def _arithmetic(self, node: fx.Node, kind: str, args: list[Any]) -> Any:
        kinds = {type(arg) for arg in args}
        if kinds <= {_Size, int, tuple, list} and kind != "truediv":
            return _Size()
        if (kind == "mul" and kinds == {_Time, _Ones}) or (
            kind == "add" and kinds == {_Time, _Zeros}
        ):
            return _Time()
        states = [arg for arg in args if isinstance(arg, _State)]
        numbers = [arg for arg in args if type(arg) in (int, float)]
        if len(states) != 1 or len(states) + len(numbers) != len(args) or states[0].column:
            _refuse(node, "an operation that no perceptron has")
        if kind == "neg":
            factor = -1.0
        elif kind == "mul" and numbers:
            factor = float(numbers[0])
        elif kind == "truediv" and numbers and args[0] is states[0] and numbers[0]:
            factor = 1 / float(numbers[0])
        else:
            _refuse(node, "an operation that no perceptron has")
        if not math.isfinite(factor):
            _refuse(node, "a factor that is not finite")
        return replace(states[0], scale=states[0].scale * factor)

    def _cat(self, node: fx.Node, args: list[Any]) -> Any:
        given: Any = args[0] if args else node.kwargs.get("tensors", ())
        parts = [self._value(part) for part in given]
        dim = args[1] if len(args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
        kinds = [type(part) for part in parts]
        if dim not in (-1, 1) or sorted(kinds, key=str) != [_State, _Time]:
            _refuse(node, "a concatenation of anything but the state and the time, by features")
        state = parts[kinds.index(_State)]
        if not state.active or state.column:
            _refuse(node, "a time appended where it is not the next layer's input")
        return replace(state, column="last" if kinds[1] is _Time else "first")


_BY_FUNCTION: dict[Any, str] = {
    operator.add: "add",
    torch.add: "add",
    operator.floordiv: "floordiv",
    operator.mul: "mul",
    torch.mul: "mul",
    torch.multiply: "mul",
    operator.neg: "neg",
    torch.neg: "neg",
    torch.negative: "neg",
    operator.sub: "sub",
    operator.truediv: "truediv",
    torch.div: "truediv",
}
_BY_NAME = {"add": "add", "div": "truediv", "mul": "mul", "multiply": "mul", "neg": "neg"}


def _is_input(x: Any) -> bool:
    return isinstance(x, _State) and not x.layers and not x.column


def _scaled(state: _State) -> _State:
    """The same, its scale being one of its last layer."""
    *before, last = state.layers
    return replace(
        state, layers=(*before, replace(last, after=last.after * state.scale)), scale=1.0
    )


def _options(name: str, args: list[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a function's call, by name."""
    given = dict(zip((*OPTIONS.get(name, ()), "inplace"), args, strict=False))
    given |= kwargs
    given.pop("inplace", None)
    return given


def _refuse(node: fx.Node, why: str) -> NoReturn:
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    operation = f"{target.removeprefix('field.')}({', '.join(map(str, node.args))})"
    raise NotFusable(f"{why}: {operation}", operation)


def _untraceable(error: Exception) -> NotFusable:
    """What to say of a forward that fails when it is called with symbols."""
    text = str(error).partition("\n")[0]
    if "control flow" in text:
        why = "control flow that depends on a value of t or y"
    elif "'len'" in text or "iterat" in text:
        why = "a length that is not known before the solve (y.shape[0] may be used)"
    elif isinstance(error, TraceError) or "Proxy" in text or "__cuda_array_interface__" in text:
        why = "the value of t or y is not known before the solve"
    else:
        why = text
    libraries = tuple(str(Path(file).parent) for file in (str(torch.__file__), __file__))
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(libraries)]
    if not own:
        return NotFusable(f"forward cannot be traced: {why}", text)
    last = own[-1]
    place = f"{Path(last.filename).name}:{last.lineno}"
    return NotFusable(f"forward cannot be traced: {why}, in {last.line} ({place})", last.line or "")
