"""Recomputation of a field as in the forward pass: parameters, random numbers, autocast, buffers,
hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from types import FunctionType, MethodType
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


def modules_in(func: Any) -> list[nn.Module]:
    """The modules that evaluate func, as far as they can be found: that of ``module_of``, those
    that func closes over or is partially applied to, and all modules inside of these."""
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()
    waiting = [func]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            found.update((id(module), module) for module in value.modules())
        elif isinstance(value, partial):
            waiting += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, MethodType):
            waiting += [value.__self__, value.__func__]
        elif isinstance(value, FunctionType):
            for cell in value.__closure__ or ():
                # A variable that was deleted, or is not there yet, has no value.
                with suppress(ValueError):
                    waiting.append(cell.cell_contents)
    return list(found.values())


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
            # Not x itself: an operation that saves its own result would hold, and never free, it.
            return x.detach()

        # torch.func's derivatives know no such hooks; nobody keeps a graph there.
        wanted = torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active()
        with saved_tensors_hooks(pack, lambda x: x) if wanted else nullcontext():
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

    Its modules have the parameters, buffers, submodules and the mode (training or evaluation) that
    they had when this object was made, whatever has taken their places since, as
    ``torch.func.functional_call`` does. Buffers are copies, which recomputation may change.
    """

    def __init__(self, func: Any, device: torch.device):
        self.device, self.modules = device, modules_in(func)
        # Those of TorchScript are no dicts: nothing can take the place of what they hold.
        self._held = [
            (registry, dict(registry))
            for module in self.modules
            for registry in (module._parameters, module._modules)
            if isinstance(registry, dict)
        ]
        self._buffers = [
            (module._buffers, dict(module._buffers))
            for module in self.modules
            if module._buffers and isinstance(module._buffers, dict)
        ]
        self._training = [module.training for module in self.modules]
        self._frozen: list[tuple[Tensor, int]] = []
        self._owner = module_of(func)
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
            for module in self.modules:
                hooks = module._forward_hooks
                if hooks:
                    stack.callback(_restore, hooks, dict(hooks))
                    for key, hook in list(hooks.items()):
                        hooks[key] = partial(_noting, hook, active, key)
                        self.silent_hooks.add(key)
            yield
        self.silent_hooks -= active
        # Autograd itself watches those that need a gradient.
        self._frozen = [
            (x, x._version)
            for x in (() if self._owner is None else self._owner.parameters())
            if not (x.requires_grad or x.is_inference())
        ]

    @contextmanager
    def recomputation(self, draws: bool, params: Sequence[Tensor] = ()) -> Iterator[None]:
        """Recomputation, anywhere in the backward pass.

        Args:
            draws: whether the field draws random numbers.
            params: tensors of which gradients are added up inside. Their own hooks
                (``Tensor.register_hook``) see the sum only, which autograd hands to them.

        Raises:
            RuntimeError: a parameter was changed in place since the forward pass.
        """
        for x, version in self._frozen:
            if x._version != version:
                raise RuntimeError(
                    f"a parameter of shape {tuple(x.shape)} of the vector field has been modified "
                    "by an in-place operation since the forward pass, whose steps the backward "
                    "pass recomputes: call backward() first, or use adjoint='backprop'"
                )
        with ExitStack() as stack:
            self._autocast(stack)
            if draws:
                stack.callback(set_random_state, random_state(self.device), self.device)
            for x in params:
                if x._backward_hooks:
                    _replace(stack, x._backward_hooks, {})
            for registry, held in self._held:
                if not _same(registry, held):
                    _replace(stack, registry, held)
            for buffers, held in self._buffers:
                copies = {name: None if x is None else x.clone() for name, x in held.items()}
                _replace(stack, buffers, copies)
            for module, training in zip(self.modules, self._training, strict=True):
                if module.training != training:
                    stack.callback(setattr, module, "training", module.training)
                    module.training = training
                hooks = module._forward_hooks
                if self.silent_hooks & set(hooks):
                    _replace(
                        stack, hooks, {k: v for k, v in hooks.items() if k not in self.silent_hooks}
                    )
            yield

    def _autocast(self, stack: ExitStack, only_if_enabled: bool = False) -> None:
        # Without its cache: weights cached by a pass without an autograd graph have no gradient.
        for kind, enabled, dtype in self.autocast:
            if enabled or (not only_if_enabled and torch.is_autocast_enabled(kind)):
                stack.enter_context(
                    torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False)
                )


def _same(registry: Any, held: dict[Any, Any]) -> bool:
    """Whether a registry still holds the same objects."""
    return len(registry) == len(held) and all(registry.get(k) is v for k, v in held.items())


def _replace(stack: ExitStack, registry: Any, held: dict[Any, Any]) -> None:
    """Puts ``held`` into the registry until the stack ends."""
    stack.callback(_restore, registry, dict(registry))
    _restore(registry, held)


def _restore(registry: Any, before: dict[Any, Any]) -> None:
    registry.clear()
    registry.update(before)


def _noting(hook: Callable[..., Any], active: set[int], key: int, *args: Any, **kwargs: Any) -> Any:
    result = hook(*args, **kwargs)
    if result is not None:
        active.add(key)
    return result
