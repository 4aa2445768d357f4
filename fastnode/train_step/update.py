"""Updates of a torch optimiser's parameters in native code, on its own state."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Adamax, AdamW, Optimizer

from fastnode import extension
from fastnode.engines.held_values import Place, changed

#: Optimisers whose updates are native: the order of csrc/ops/optimizer_update.h.
RULES: tuple[type[Optimizer], ...] = (Adam, AdamW, Adamax, SGD)
#: What each keeps for a parameter.
_FIRST = {Adam: "exp_avg", AdamW: "exp_avg", Adamax: "exp_avg", SGD: "momentum_buffer"}
_SECOND: dict[type[Optimizer], str] = {Adam: "exp_avg_sq", AdamW: "exp_avg_sq", Adamax: "exp_inf"}


def check_optimizer(optimizer: Any) -> None:
    """Raises TypeError unless it is an optimiser whose steps need no closure."""
    if not isinstance(optimizer, Optimizer):
        kind = type(optimizer).__name__
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {kind}")
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(
            f"optimizer {type(optimizer).__name__} evaluates the loss several times a step; "
            "use one whose step needs no closure"
        )


def _may_be_native(optimizer: Optimizer) -> bool:
    """Whether its settings are those of a rule that native code has."""
    if not extension.AVAILABLE or type(optimizer) not in RULES:
        return False
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return False
    for group in optimizer.param_groups:
        if group.get("differentiable") or group.get("capturable"):
            return False
        if any(isinstance(x, Tensor) for x in (group["lr"], *group.get("betas", ()))):
            return False
    return True


def _is_simple(x: Any) -> bool:
    """Whether kernels may walk over its memory."""
    plain = isinstance(x, Tensor) and x.device.type == "cpu" and x.is_contiguous()
    return plain and x.dtype in (torch.float32, torch.float64)


@dataclass(eq=False)
class _Group:
    members: list[Tensor]
    #: fastnode._C.OptimizerUpdate, and with its settings fastnode._C.Update.
    rule: Any
    settings: tuple[Any, ...]
    update: Any
    #: Of SGD: whether there was no momentum before.
    first_step: bool


class Updates:
    """The updates of a torch optimiser, its settings and its state read anew when they change.

    Args:
        optimizer: an optimiser as ``check_optimizer`` allows.
    """

    def __init__(self, optimizer: Optimizer):
        self._optimizer = optimizer
        #: Whether kernels may walk over parameters and state, as they are.
        self._simple = True
        self._gradients: dict[Tensor, Tensor] = {}
        self._places: list[Place] = []
        self._groups: list[_Group] = []

    def current(self, gradients: dict[Tensor, Tensor]) -> list[Any] | None:
        """What fastnode._C.train_steps applies, as the optimiser is now; None if it is to make the
        update itself.

        Args:
            gradients: of the parameters that are updated.
        """
        if not _may_be_native(self._optimizer):
            return None
        same = gradients is self._gradients
        members = same or gradients.keys() == self._gradients.keys()
        self._gradients = gradients
        if not (self._groups and members) or changed(self._places):
            self._read()
        elif not same:
            for known in self._groups:
                known.rule.gradients = [gradients[p] for p in known.members]
        if not self._simple:
            return None
        found = []
        for group, known in zip(self._optimizer.param_groups, self._groups, strict=True):
            settings = _settings(group)
            if known.update is None or settings != known.settings:
                native = extension.native()
                known.update = native.Update(known.rule, *settings, known.first_step)
                known.settings = settings
            found.append(known.update)
        return found

    def applied(self) -> None:
        """An update was made."""
        for known in self._groups:
            if known.first_step:
                known.first_step, known.update = False, None
        # What learning rate schedules look for.
        self._optimizer._opt_called = True  # pyright: ignore

    def _read(self) -> None:
        optimizer, groups = self._optimizer, self._optimizer.param_groups
        own = vars(optimizer)
        self._places = [(own, "state", own["state"]), (own, "param_groups", groups)]
        self._places.append((groups, None, len(groups)))
        self._groups, self._simple = [], all(map(_is_simple, self._gradients.values()))
        for group in groups:
            members = [p for p in group["params"] if p in self._gradients]
            self._places.append((group, "params", group["params"]))
            self._places.append((group["params"], None, len(group["params"])))
            self._groups.append(self._group(group, members))

    def _group(self, group: dict[str, Any], members: list[Tensor]) -> _Group:
        optimizer = self._optimizer
        kind = type(optimizer)
        if kind is Adam and group.get("decoupled_weight_decay"):
            kind = AdamW
        names = {"first": _FIRST[kind]}
        if kind is not SGD:
            names |= {"second": _SECOND[kind], "steps": "step"}
        if group.get("amsgrad"):
            names["largest"] = "max_exp_avg_sq"
        keeps = kind is not SGD or group["momentum"] != 0
        lists: dict[str, list[Tensor]] = {n: [] for n in ("first", "second", "largest", "steps")}
        begun = 0
        for p in members if keeps else ():
            state = optimizer.state[p]
            if state.get(_FIRST[kind]) is None:
                begun += 1
                _begin(kind, group, p, state)
            self._places.append((optimizer.state, p, state))
            for which, name in names.items():
                lists[which].append(state[name])
                self._places.append((state, name, state[name]))
        rule = extension.native().OptimizerUpdate(
            RULES.index(kind),
            members,
            [self._gradients[p] for p in members],
            *lists.values(),
        )
        held = [*members, *(x for each in lists.values() for x in each)]
        self._simple = self._simple and all(map(_is_simple, held))
        first_step = kind is SGD and keeps and begun == len(members)
        return _Group(members, rule, (), None, first_step)


def _begin(kind: Any, group: dict[str, Any], p: Tensor, state: dict[str, Any]) -> None:
    """The state before the first step, as torch makes it."""
    with torch.no_grad():
        state[_FIRST[kind]] = torch.zeros_like(p)
        if kind is SGD:
            return
        wide = not group.get("fused") and torch.get_default_dtype() == torch.float64
        state["step"] = torch.zeros((), dtype=torch.float64 if wide else torch.float32)
        state[_SECOND[kind]] = torch.zeros_like(p)
        if group.get("amsgrad"):
            state["max_exp_avg_sq"] = torch.zeros_like(p)


def _settings(group: dict[str, Any]) -> tuple[Any, ...]:
    """In the order of fastnode._C.Update."""
    if "betas" in group:
        beta1, beta2 = group["betas"]
        eps = group["eps"]
    else:
        beta1, beta2, eps = group["momentum"], group["dampening"], 0.0
    return (
        group["lr"], beta1, beta2, eps, group["weight_decay"], group.get("amsgrad", False),
        group["maximize"], group.get("nesterov", False),
    )  # fmt: skip
