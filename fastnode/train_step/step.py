"""TrainStep: loss, gradients, clipping and the optimiser's update in one native call."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from fastnode.errors import NotCompilable
from fastnode.fields.loss import total_of
from fastnode.train_step.compiled import NOT_FINITE, OUT_OF_RANGE, OUTDATED, Code, LossCodes
from fastnode.train_step.update import Updates, check_optimizer

ENGINES = ("auto", "compiled", "eager")
#: Bytes of parameters with gradients up to which ``auto`` compiles. Beyond, weights and gradients
#: leave a core's cache for each tile of samples, and PyTorch's products over the whole batch are
#: faster: measured plain over compiled 1.65 with 0.6 MB, 1.1 with 1.4 MB, 0.9 with 2.4 MB.
LARGEST = 1_500_000
#: Steps of ``run`` between two calls of ``progress``, unless the caller says another number.
EVERY = 100


class Progress(NamedTuple):
    """What ``run`` reports: steps done, steps in all, and the mean total loss since the last
    report."""

    step: int
    steps: int
    loss: float


class TrainStep:
    """A training step: loss, gradients, clipping and update.

    ``step(x, y)`` does what this does::

        optimizer.zero_grad()
        losses = loss(model, x, y)
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)  # if there is a clip
        optimizer.step()

    Where the loss treats samples alone, all of it runs in one native call: C++ is generated from
    the loss of one sample, with samples in the lanes of vectors, as ``compile_field`` does for
    fields. Elsewhere, as with batch normalisation in training, the loss runs as it is and the
    update alone is native; a warning says why, once.

    The optimiser's own state, settings and ``state_dict`` stay the truth: learning rate schedules
    and checkpoints work as before. Random numbers that the loss draws by ``torch.rand``,
    ``torch.randn`` and their ``_like`` forms are those that it would draw itself.

    Args:
        model: its parameters are trained; its ``loss`` is the default for ``loss``.
        optimizer: Adam, AdamW, Adamax and SGD are updated in native code, others by their own
            ``step``.
        loss: called as ``loss(model, *rows)``, and with ``generator=`` if a step is given one. It
            returns a scalar, or a named tuple of scalars with a ``total``: a mean or a sum over the
            samples.
        clip: largest norm of the gradient of all parameters together; None: no bound.
        engine: ``auto`` compiles nets whose parameters fit a core's cache; ``compiled`` raises
            where there can be no native code; ``eager`` never compiles.

    Attributes:
        steps: updates made.
        reason: why the last step was not compiled; None if it was.

    Raises:
        TypeError: an argument is of a wrong type, or the optimiser needs a closure.
        ValueError: an unknown engine, a bound that is not positive, an optimiser over parameters
            that are not the model's, no parameter to train.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss: Callable[..., Any] | None = None,
        clip: float | None = None,
        engine: str = "auto",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        check_optimizer(optimizer)
        if loss is None:
            loss = getattr(type(model), "loss", None)
            if loss is None:
                raise TypeError(f"{type(model).__name__} has no method loss; give a function loss")
        if not callable(loss):
            raise TypeError(f"loss must be callable, got {type(loss).__name__}")
        if engine not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
        if clip is not None and not clip > 0:
            raise ValueError(f"clip must be positive, got {clip}")
        self.model, self.optimizer, self.loss = model, optimizer, loss
        self.clip, self.engine = clip, engine
        self._takes_generator = "generator" in inspect.signature(loss).parameters
        self.steps = 0
        self.reason: str | None = None
        self._codes = LossCodes(model, loss)
        self._updates = Updates(optimizer)
        self._code: Code | None = None
        self._trained: list[bool] = []
        self._updated: dict[Tensor, Tensor] = {}
        self._bytes = sum(p.numel() * p.itemsize for p in model.parameters() if p.requires_grad)
        self._known = {id(p) for p in model.parameters()}
        self._warned: set[str] = set()
        self._check_parameters()

    def __call__(self, *rows: Tensor, generator: torch.Generator | None = None) -> Any:
        """One step on a batch.

        Args:
            rows: arguments of the loss after the model: tensors [B, ...].
            generator: given to the loss, as the source of its random numbers.

        Returns:
            What the loss returns, without gradients: the losses before the update.

        Raises:
            ValueError: rows of different numbers of samples; parameters that the optimiser does
                not know were added to the model.
            FloatingPointError: the loss, or with ``clip`` the norm of the gradient, is not finite.
                Nothing was updated.
            NotCompilable: there can be no code, with the engine ``compiled``.
        """
        batch = _batch_of(rows)
        code = self._find(rows, batch, generator is not None)
        if code is not None:
            found = self._compiled(code, rows, None, generator)
            if found is not None:
                return code.loss.result(found[0].unbind())
        return self._eager(rows, generator)

    def run(
        self,
        *rows: Tensor,
        steps: int,
        batch_size: int,
        generator: torch.Generator | None = None,
        progress: Callable[[Progress], Any] | None = None,
        every: int = EVERY,
    ) -> Tensor:
        """Many steps on random batches, compiled ones without Python between them.

        Batches are consecutive parts of shuffled epochs, always full. Ctrl-C ends the run between
        two steps.

        Args:
            rows: all samples: arguments of the loss after the model, tensors [N, ...].
            steps: how many.
            batch_size: samples of each.
            generator: of the shuffles; a loss that has an argument ``generator`` is given it too.
            progress: called with a ``Progress`` after every ``every`` steps; the place to change
                learning rates.

        Returns:
            The total loss of each step, [steps], float64.

        Raises:
            As for a single step; FloatingPointError names the step, and those before it are made.
        """
        for name, value in (("steps", steps), ("batch_size", batch_size), ("every", every)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {type(value).__name__}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        count = _batch_of(rows)
        losses = torch.empty(steps, dtype=torch.float64)
        order = _Order(count, batch_size, generator, rows[0].device)
        given = generator if self._takes_generator else None
        for first in range(0, steps, every):
            picked = order.next(min(every, steps - first))
            part = losses[first : first + len(picked)]
            self._run(rows, picked, given, part)
            if progress is not None:
                progress(Progress(first + len(picked), steps, float(part.mean())))
        return losses

    def _run(
        self,
        rows: tuple[Tensor, ...],
        picked: Tensor,
        generator: torch.Generator | None,
        losses: Tensor,
    ) -> None:
        code = self._find(rows, picked.shape[1], generator is not None)
        if code is not None and self._updates.current(self._of_optimizer(code)) is not None:
            found = self._compiled(code, rows, picked, generator)
            if found is not None:
                losses.copy_(found[:, 0])
                return
        done = 0 if code is None else code.loss.code.done
        for i in range(done, len(picked)):
            batch = [x.index_select(0, picked[i]) for x in rows]
            losses[i] = total_of(self(*batch, generator=generator))

    def _compiled(
        self,
        code: Code,
        rows: tuple[Tensor, ...],
        picked: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor | None:
        """The losses of native steps, [steps, parts]; None where the next is to run without code: a
        row holds a class that there is not, which the loss may know a use for, or parameters have
        another form than the code."""
        gradients = self._of_optimizer(code)
        updates = self._updates.current(gradients)
        ending, losses = code.run(rows, picked, generator, updates or (), self.clip)
        done = code.loss.code.done
        if updates is not None and done:
            self._updates.applied()
        self.steps += done
        if ending == NOT_FINITE:
            self._not_finite(float(losses[done, 0]))
        if ending == OUTDATED:
            self._codes.forget()
        if ending in (OUT_OF_RANGE, OUTDATED):
            return None
        if updates is None:
            for p, g in gradients.items():
                p.grad = g
            self.optimizer.step()
        return losses

    def _eager(self, rows: tuple[Tensor, ...], generator: torch.Generator | None) -> Any:
        self._check_parameters()
        self.optimizer.zero_grad()
        keywords = {} if generator is None else {"generator": generator}
        losses = self.loss(self.model, *rows, **keywords)
        total = total_of(losses)
        total.backward()
        if total.device.type == "cpu" and not math.isfinite(float(total.detach())):
            self._not_finite(float(total.detach()))
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.clip is not None:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            if norm.device.type == "cpu" and not math.isfinite(float(norm)):
                self._not_finite(float(total.detach()))
        gradients = {p: p.grad for p in trained if p.grad is not None}
        updates = self._updates.current(gradients)
        if updates is None:
            self.optimizer.step()
        else:
            for update in updates:
                update.apply()
            self._updates.applied()
        self.steps += 1
        return tree_map_only(Tensor, Tensor.detach, losses)

    def _not_finite(self, loss: float) -> None:
        what = "gradient's norm is not finite" if math.isfinite(loss) else f"loss became {loss}"
        raise FloatingPointError(
            f"the {what} in step {self.steps + 1}, whose update was not made; try a lower learning "
            "rate"
        )

    def _find(self, rows: tuple[Tensor, ...], batch: int, given: bool) -> Code | None:
        """Native code for a step; None if it is to run without."""
        if self.engine == "eager":
            return None
        if self.engine == "auto" and self._bytes > LARGEST:
            self.reason = f"with {self._bytes} bytes of parameters PyTorch's products are faster"
            return None
        try:
            code = self._codes.find(rows, batch, given)
        except NotCompilable as error:
            if self.engine == "compiled":
                raise
            self.reason = error.reason
            if error.reason not in self._warned:
                self._warned.add(error.reason)
                warnings.warn(f"the training step is not compiled: {error.reason}", stacklevel=3)
            return None
        self.reason = None
        return code

    def _of_optimizer(self, code: Code) -> dict[Tensor, Tensor]:
        """The gradients of those parameters that the optimiser has."""
        trained = [p.requires_grad for p in code.gradients]
        if code is not self._code or trained != self._trained:
            self._check_parameters()
            has = {p for group in self.optimizer.param_groups for p in group["params"]}
            self._code, self._trained = code, trained
            self._updated = {
                p: g for p, g in code.gradients.items() if p in has and p.requires_grad
            }
        return self._updated

    def _check_parameters(self) -> None:
        now = {id(p) for p in self.model.parameters()}
        has = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        if not has <= now:
            raise ValueError(
                f"optimizer has {len(has - now)} parameters that are not the model's; make it "
                "of model.parameters()"
            )
        if not any(p.requires_grad for p in self.model.parameters() if id(p) in has):
            raise ValueError("no parameter of the model and the optimizer requires a gradient")
        for name, p in self.model.named_parameters():
            if p.requires_grad and id(p) not in self._known and id(p) not in has:
                raise ValueError(
                    f"the parameter {name} was added to the model and is not the optimizer's; "
                    "add it by optimizer.add_param_group"
                )


class _Order:
    """Rows of consecutive batches: parts of shuffled epochs."""

    def __init__(
        self, count: int, batch: int, generator: torch.Generator | None, device: torch.device
    ):
        self._count, self._batch, self._generator = count, batch, generator
        self._device = device
        self._left = torch.empty(0, dtype=torch.int64)

    def next(self, steps: int) -> Tensor:
        """[steps, batch]"""
        parts, there, needed = [self._left], len(self._left), steps * self._batch
        while there < needed:
            parts.append(torch.randperm(self._count, generator=self._generator))
            there += self._count
        whole = torch.cat(parts)
        self._left = whole[needed:]
        return whole[:needed].view(steps, self._batch).to(self._device)


def _batch_of(rows: tuple[Tensor, ...]) -> int:
    if not rows:
        raise TypeError("a step needs at least one tensor of samples")
    for i, x in enumerate(rows):
        if not isinstance(x, Tensor):
            raise TypeError(f"argument {i} must be a tensor [B, ...], got {type(x).__name__}")
        if x.dim() == 0 or x.shape[0] != rows[0].shape[0] or x.shape[0] == 0:
            shapes = ", ".join(str(tuple(each.shape)) for each in rows)
            raise ValueError(f"arguments must be tensors [B, ...] with one B, got shapes {shapes}")
    return rows[0].shape[0]
