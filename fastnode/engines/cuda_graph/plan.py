"""A captured solve: one step over fixed memory, and what repeats it until the solve has ended.

With conditional nodes (CUDA 12.4) the beginning and the loop over steps are one graph and one
launch. Without, a graph of ``STEPS`` steps is launched again and again: a step after the last one
changes nothing, and whether there is more to do is read while the next launch already runs.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastnode.engines.cuda_graph import runtime as graph_runtime
from fastnode.engines.cuda_graph.field import Held, cannot, check_pure, weakly
from fastnode.engines.cuda_graph.program import Program, Shape
from fastnode.problem.ivp import VectorField

#: Captured solves and backward passes that are kept for further ones.
MOST = 16
#: Steps whose records are read together with the decisions.
READ = 256


@dataclass(frozen=True, eq=False)
class Record:
    """The accepted steps of one launch; ``starts`` are the states with which they began."""

    ends: list[float]
    errors: list[float]
    stiffness: list[float]
    starts: Tensor


class Plan:
    """Runs solves of one kind.

    Args:
        field: of the first one.
        func: gives the caller's function, without keeping it.
        y0, start: a state of that kind and a time, at which func is tried.
        shape: what else is fixed.
    """

    def __init__(
        self,
        field: VectorField,
        func: Callable[[], Any],
        y0: Tensor,
        start: float,
        shape: Shape,
    ):
        self.runtime: graph_runtime.Runtime = graph_runtime.runtime_for(y0.device)
        self.program = Program(field, func, y0, shape)
        self.lock = threading.Lock()
        self.state: dict[str, Any] = {}
        self._capture(field.time(start, 0))

    def _capture(self, time: Tensor) -> None:
        program, runtime = self.program, self.runtime
        self._check_ready()
        step = program.step
        step.times.copy_(time.expand_as(step.times))

        def evaluate() -> Tensor:
            return program.evaluate(0, step.y)

        with no_autocast_cache():
            with runtime.aside():
                program.copies = check_pure(evaluate, program.func(), step.y, runtime.watched)
            try:
                self.first = runtime.capture(program.first)
                self.body = runtime.capture(program.body)
                self._run = runtime.loop(self.first, self.body, step.running)
                if self._run is None:
                    self.body = runtime.capture(program.several)
            except RuntimeError as error:
                raise cannot(f"it does what a CUDA graph cannot hold ({error})") from error
        self._again: Callable[[], None] | None = None

    def _check_ready(self) -> None:
        reason = self.runtime.ready()
        if reason is not None:
            raise ValueError(f"engine 'graph' cannot run here: {reason}")

    def run(
        self,
        field: VectorField,
        y0: Tensor,
        times: Sequence[float],
        first_step: float | None,
        take: Callable[[Record], None],
    ) -> Tensor:
        """The outputs [T, ...]; where the solve stands afterwards is in ``state``, and ``take`` is
        given the records of accepted steps. The device is read once, when all is done (and each
        time that the records are full)."""
        program, runtime = self.program, self.runtime
        self._check_ready()
        step = program.step
        runtime.enter([step.memory, step.y, step.f, step.outputs, step.starts])
        image = step.image(first_step or 0.0, field.direction, times)
        step.memory.copy_(image, non_blocking=True)
        step.y.copy_(y0)
        step.times[:1].fill_(times[0])
        step.outputs[0].copy_(y0)
        for ours, theirs in zip(program.args, field.args, strict=True):
            if isinstance(ours, Tensor):
                ours.copy_(theirs)
        self._launch()
        while True:
            self.state = state = self._read(take)
            if state["next"] == program.shape.count or state["noted"] < program.capacity:
                break
            step.noted.zero_()
            step.begin()
            self._repeat()
        outputs = step.outputs[: state["next"]].clone()
        runtime.leave()
        return outputs

    def _read(self, take: Callable[[Record], None]) -> dict[str, Any]:
        """Waits for the device; what it decided."""
        step = self.program.step
        records = [step.ends, step.errors, step.stiffness]
        parts = [step.memory, *(x[:READ].view(torch.uint8) for x in records)]
        memory, *heads = torch.cat(parts).cpu().split([x.numel() for x in parts])
        state = step.read(memory)
        noted = state["noted"]
        columns = [head.clone().view(torch.float64)[:noted].tolist() for head in heads]
        if noted > READ:
            columns = [
                [*column, *x[READ:noted].tolist()] if x.numel() else []
                for column, x in zip(columns, records, strict=True)
            ]
        starts = step.starts[:noted].clone() if self.program.shape.keeps_starts else step.starts
        ends, errors, stiffness = columns
        take(Record(ends, errors, stiffness, starts))
        return state

    def _launch(self) -> None:
        if self._run is not None:
            self._run()
            return
        self.runtime.replay(self.first)
        self._poll()

    def _repeat(self) -> None:
        """Goes on with a solve that stopped for want of room."""
        if self._run is None:
            self._poll()
            return
        if self._again is None:
            self._again = self.runtime.loop(None, self.body, self.program.step.running)
        assert self._again is not None
        self._again()

    def _poll(self) -> None:
        before: Callable[[], bool] | None = None
        while True:
            self.runtime.replay(self.body)
            flag = self.runtime.peek(self.program.step.running)
            if before is not None and not before():
                return
            before = flag


@contextmanager
def no_autocast_cache() -> Iterator[None]:
    """Autocast keeps copies of weights to the end of its context: shorter than a graph lives."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


_kept: OrderedDict[Hashable, tuple[Callable[[], Any], Any]] = OrderedDict()
_lock = threading.Lock()


def cached(
    func: Any,
    field: VectorField,
    y0: Tensor,
    kind: Hashable,
    make: Callable[[Callable[[], Any]], Any],
) -> Any:
    """What was captured of func for states like y0, made at its first use by ``make``, which is
    given a reference that does not keep func.

    Raises:
        ValueError: func cannot be captured; it says why.
    """
    args = tuple((x.shape, x.dtype, x.device) if isinstance(x, Tensor) else x for x in field.args)
    try:
        hash(args)
    except TypeError as error:
        raise TypeError(f"args of engine 'graph' must be tensors or hashable ({error})") from error
    key = (
        id(getattr(func, "__self__", func)),
        id(getattr(func, "__func__", func)),
        Held.of(func).key(),
        args,
        (y0.shape, y0.dtype, y0.device, field.layout.shapes),
        kind,
        _surroundings(y0.device),
    )
    with _lock:
        known = _kept.get(key)
        if known is not None and known[0]() is not None:
            _kept.move_to_end(key)
            return known[1]
    reference = weakly(func, lambda _: _forget(key))
    made = make(reference)
    with _lock:
        _kept[key] = (reference, made)
        while len(_kept) > MOST:
            _kept.popitem(last=False)
    return made


def plan_for(func: Any, field: VectorField, y0: Tensor, start: float, shape: Shape) -> Plan:
    """A plan for solves of func from states like y0, made at the first of them."""
    return cached(func, field, y0, shape, lambda weak: Plan(field, weak, y0, start, shape))


def _forget(key: Hashable) -> None:
    _kept.pop(key, None)


def clear() -> None:
    """Lets go of all graphs and of the memory that they hold."""
    with _lock:
        _kept.clear()


def _surroundings(device: torch.device) -> Hashable:
    """What decides which kernels a field launches."""
    return (
        torch.is_autocast_enabled(device.type),
        torch.get_autocast_dtype(device.type),
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
    )
