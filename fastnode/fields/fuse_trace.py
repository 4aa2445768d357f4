"""Reads a multilayer perceptron in the graph of a module."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import fx, nn

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
    nn.ReLU: "relu",
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "silu",
    nn.Softplus: "softplus",
    nn.Tanh: "tanh",
}
FUNCTIONS: dict[Any, str] = {
    F.elu: "elu",
    F.gelu: "gelu",
    F.relu: "relu",
    torch.relu: "relu",
    torch.sigmoid: "sigmoid",
    F.sigmoid: "sigmoid",
    F.silu: "silu",
    torch.sin: "sin",
    F.softplus: "softplus",
    torch.tanh: "tanh",
    F.tanh: "tanh",
}
METHODS = {name: name for name in ("relu", "sigmoid", "sin", "tanh")}
#: Operations that move a time or a column of ones about without changing a number in it.
SHAPES = ("expand", "expand_as", "view", "reshape", "unsqueeze", "repeat", "to", "type_as", "float")


class _Time:
    """The time, in any shape."""


class _Ones:
    """Ones in any shape."""


class _Size:
    """A size, a shape or a part of the state that only its shape is wanted of."""


@dataclass(frozen=True)
class _State:
    """The state after so many layers; ``column`` is where the time has been appended to it."""

    layers: tuple[tuple[nn.Module, str | None], ...] = ()
    active: bool = True
    column: str | None = None


@dataclass(frozen=True, eq=False)
class Net:
    """Linear layers, each with where the time is appended to its input: first, last or None."""

    layers: tuple[tuple[nn.Module, str | None], ...]
    activation: str


class Tracer(fx.Tracer):
    """Sees layers that know the time, and whole perceptrons, as one operation."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        fields = isinstance(m, (TimeLinear, MLPField))
        return fields or super().is_leaf_module(m, module_qualified_name)


class Reader:
    """Follows the graph of a module from (t, y) to a perceptron."""

    def __init__(self, module: nn.Module, graph: fx.Graph):
        self.modules = dict(module.named_modules())
        self.graph = graph
        self.values: dict[fx.Node, Any] = {}
        self.activation: str | None = None

    def read(self) -> Net:
        inputs = [node for node in self.graph.nodes if node.op == "placeholder"]
        if len(inputs) != 2:
            names = ", ".join(node.name for node in inputs)
            raise NotFusable(f"forward must take (t, y), got ({names})", "forward")
        self.values = {inputs[0]: _Time(), inputs[1]: _State()}
        result: Any = None
        for node in self.graph.nodes:
            if node.op == "output":
                result = self._value(node.args[0])
                last = node
            elif node.op != "placeholder":
                self.values[node] = self._step(node)
        if not isinstance(result, _State) or not result.layers or result.active or result.column:
            _refuse(last, "what forward returns is not a linear layer's result")
        if len(result.layers) > MAX_DEPTH:
            _refuse(last, f"more than {MAX_DEPTH} linear layers")
        return Net(result.layers, self.activation or "tanh")

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
        if kind is MLPField and isinstance(args[0], _Time) and args[1] == _State():
            self._activate(node, module.activation)
            state = _State()
            for i, layer in enumerate(module.layers):
                timed = "last" if isinstance(layer, TimeLinear) else None
                state = self._linear(node, layer, state, timed)
                if i + 1 < len(module.layers):
                    state = _State(state.layers)
            return state
        if kind in MODULES and len(args) == 1:
            _check_module(node, module)
            return self._activation(node, MODULES[kind], args[0])
        _refuse(node, f"a module of type {kind.__name__}")

    def _linear(self, node: fx.Node, module: nn.Module, state: Any, column: str | None) -> _State:
        if not isinstance(state, _State):
            _refuse(node, "a linear layer of something else than the state")
        if not state.active:
            _refuse(node, "two linear layers without an activation between them")
        return _State((*state.layers, (module, column or state.column)), active=False)

    def _activate(self, node: fx.Node, name: str) -> None:
        if self.activation not in (None, name):
            _refuse(node, f"{name} beside {self.activation}: all activations must be the same")
        self.activation = name

    def _activation(self, node: fx.Node, name: str, state: Any) -> Any:
        if not isinstance(state, _State) or state.active or state.column:
            _refuse(node, "an activation of something else than a linear layer's result")
        self._activate(node, name)
        return _State(state.layers)

    def _method(self, node: fx.Node, name: str, args: list[Any]) -> Any:
        value = args[0]
        if name in METHODS and len(args) == 1 and isinstance(value, _State):
            return self._activation(node, name, value)
        if isinstance(value, (_Time, _Ones)) and name in SHAPES:
            return value
        if isinstance(value, (_State, _Size, _Time)) and name in ("size", "dim", "numel"):
            return _Size()
        if name == "new_ones" and isinstance(value, (_State, _Size)):
            return _Ones()
        if name == "new_full" and isinstance(args[2], _Time):
            return _Time()
        _refuse(node, "an operation that no perceptron has")

    def _function(self, node: fx.Node, target: Any, args: list[Any]) -> Any:
        value = args[0] if args else None
        if target is getattr and args[1] in ("shape", "device", "dtype", "ndim"):
            return _Size()
        if target is operator.getitem and isinstance(value, (_Size, _Ones, _Time)):
            return value
        if target is operator.getitem and value == _State():
            return _Size()
        if target in (torch.ones_like, torch.ones) and not isinstance(value, _Time):
            return _Ones()
        if target in (torch.full_like, torch.full) and isinstance(args[1], _Time):
            return _Time()
        if target in (operator.mul, torch.mul) and {type(x) for x in args} == {_Time, _Ones}:
            return _Time()
        if target in (torch.cat, torch.concat, torch.concatenate):
            return self._cat(node, args)
        if target in FUNCTIONS and isinstance(value, _State):
            if set(node.kwargs) - {"inplace"} or len(args) > 1:
                _refuse(node, "an activation with options of its own")
            return self._activation(node, FUNCTIONS[target], value)
        numbers = (_Size, int, tuple, list)
        if target in _ARITHMETIC and all(isinstance(x, numbers) for x in args):
            return _Size()
        _refuse(node, "an operation that no perceptron has")

    def _cat(self, node: fx.Node, args: list[Any]) -> Any:
        parts = [self._value(part) for part in args[0]]
        dim = args[1] if len(args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
        kinds = [type(part) for part in parts]
        if dim not in (-1, 1) or sorted(kinds, key=str) != [_State, _Time]:
            _refuse(node, "a concatenation of anything but the state and the time, by features")
        state = parts[kinds.index(_State)]
        if not state.active or state.column:
            _refuse(node, "a time appended where it is not the next layer's input")
        return _State(state.layers, column="last" if kinds[1] is _Time else "first")


_ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.floordiv)


def _check_module(node: fx.Node, module: nn.Module) -> None:
    defaults = {
        nn.ELU: {"alpha": 1.0},
        nn.GELU: {"approximate": "none"},
        nn.Softplus: {"beta": 1, "threshold": 20},
    }.get(type(module), {})
    for name, value in defaults.items():
        if getattr(module, name) != value:
            _refuse(node, f"{type(module).__name__} with {name}={getattr(module, name)}")


def _refuse(node: fx.Node, why: str) -> NoReturn:
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    operation = f"{target}({', '.join(map(str, node.args))})"
    raise NotFusable(f"{why}: {operation}", operation)
