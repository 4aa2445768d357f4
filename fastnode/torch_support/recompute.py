"""Recomputation of a field as in the forward pass: random numbers, autocast, buffers, hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from fastnode.extension import empty_cache

#: Bytes of a state from which a frugal solve returns freed memory before each evaluation. The heap
#: cannot reuse the gap of another tensor for a state and keeps both: with states of 2 MiB this
#: lowers the peak of a reversible solve from 74 MB to 50 MB, for a tenth of its time.
LARGE = 2**20

#: The state of a generator on the CPU and, for CUDA states, of the one on the device.
RandomState = list[Tensor]


def module_of(func: Any) -> nn.Module | None:
    """The module that evaluates func, if func is one, a method of one, or either partially."""
    while isinstance(func, partial):
        func = func.func
    owner = func if isinstance(func, nn.Module) else getattr(func, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


class ReplayableField:
    """A field that keeps the state of the random generators at each of its evaluations.

    The first evaluation shows whether the field draws random numbers; if it does not, no state is
    kept. ``frugal`` returns freed memory to the system before each evaluation.
    """

    def __init__(self, func: Callable[..., Any], y0: Tensor, frugal: bool = False):
        self.func, self.device = func, y0.device
        self.tidies = frugal and y0.is_cpu and y0.nbytes >= LARGE
        self.draws: bool | None = None
        self.count = 0
        #: Bytes that the autograd graph of one evaluation keeps alive, where one was recorded.
        self.graph_bytes = 0
        self.states: list[RandomState] = []

    def __call__(self, t: Tensor, y: Any, *args: Any) -> Any:
        self.count += 1
        if self.tidies:
            empty_cache()
        if self.draws is False:
            return self.func(t, y, *args)
        before = random_state(self.device)
        if self.draws is None:
            with self._measured():
                result = self.func(t, y, *args)
            after = random_state(self.device)
            self.draws = not all(map(torch.equal, before, after))
        else:
            result = self.func(t, y, *args)
        if self.draws:
            self.states.append(before)
        return result

    @contextmanager
    def _measured(self) -> Iterator[None]:
        """Adds up the memory that the autograd graph keeps alive, without parameters."""
        held: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            base = x if x._base is None else x._base
            if x.layout == torch.strided and not isinstance(base, nn.Parameter):
                held[x.data_ptr()] = x.nbytes
            return x

        with saved_tensors_hooks(pack, lambda x: x) if torch.is_grad_enabled() else nullcontext():
            yield
        self.graph_bytes = sum(held.values())

    def replay(self, evaluation: int) -> None:
        """Sets the generators to their state at the beginning of an evaluation."""
        if self.draws and evaluation < len(self.states):
            set_random_state(self.states[evaluation], self.device)


def random_state(device: torch.device) -> RandomState:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_random_state(states: RandomState, device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


class Surroundings:
    """What a field's evaluations depend on besides their arguments, as in the forward pass.

    Buffers of the module need not be restored afterwards: recomputation changes copies.
    """

    def __init__(self, func: Any, device: torch.device):
        self.device, self.module = device, module_of(func)
        kinds = {"cpu", device.type}
        self.autocast = [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in sorted(kinds)
        ]
        self.silent_hooks: set[int] = set()

    @contextmanager
    def forward(self) -> Iterator[None]:
        """The forward pass, without an autograd graph; finds forward hooks without effect."""
        active: set[int] = set()
        with ExitStack() as stack:
            self._autocast(stack, only_if_enabled=True)
            for module in self._modules():
                hooks = module._forward_hooks
                if hooks:
                    stack.callback(_restore, hooks, dict(hooks))
                    for key, hook in list(hooks.items()):
                        hooks[key] = partial(_noting, hook, active, key)
                        self.silent_hooks.add(key)
            yield
        self.silent_hooks -= active

    @contextmanager
    def recomputation(self, draws: bool) -> Iterator[None]:
        """Recomputation, anywhere in the backward pass."""
        with ExitStack() as stack:
            self._autocast(stack)
            if draws:
                stack.callback(set_random_state, random_state(self.device), self.device)
            for module in self._modules():
                buffers, hooks = module._buffers, module._forward_hooks
                if buffers:
                    stack.callback(_restore, buffers, dict(buffers))
                    for name, value in list(buffers.items()):
                        buffers[name] = None if value is None else value.clone()
                if self.silent_hooks & set(hooks):
                    stack.callback(_restore, hooks, dict(hooks))
                    for key in self.silent_hooks & set(hooks):
                        del hooks[key]
            yield

    def _modules(self) -> Iterator[nn.Module]:
        return iter(()) if self.module is None else self.module.modules()

    def _autocast(self, stack: ExitStack, only_if_enabled: bool = False) -> None:
        # Without its cache: weights cached by a pass without an autograd graph have no gradient.
        for kind, enabled, dtype in self.autocast:
            if enabled or (not only_if_enabled and torch.is_autocast_enabled(kind)):
                stack.enter_context(
                    torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False)
                )


def _restore(registry: Any, before: dict[Any, Any]) -> None:
    registry.clear()
    registry.update(before)


def _noting(hook: Callable[..., Any], active: set[int], key: int, *args: Any, **kwargs: Any) -> Any:
    result = hook(*args, **kwargs)
    if result is not None:
        active.add(key)
    return result
