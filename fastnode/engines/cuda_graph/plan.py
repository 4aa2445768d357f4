"""A captured solve: one step over fixed memory, repeated until the solve has ended.

With conditional nodes (CUDA 12.4) the first evaluations and the loop over steps are one CUDA graph
and one launch. Without them, a CUDA graph of ``STEPS`` steps is launched repeatedly: a step after
the end changes nothing, and the flag of the end is read while the next launch already runs.
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
from fastnode.engines.cuda_graph.field import (
    CannotRun,
    cannot_capture,
    check_pure,
    weak_reference,
)
from fastnode.engines.cuda_graph.program import Program, Shape
from fastnode.engines.held_values import HeldValues
from fastnode.problem.ivp import VectorField

#: Captured solves and backward passes that are cached at most.
MAX_CAPTURED = 16
#: Steps whose records are copied to the host together with the state of the solve.
FIRST_READ = 256


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
        func: returns the caller's function; a weak reference to it.
        y0, start: a state of that kind and a time, at which func is evaluated for the checks.
        shape: the other constants of the solve.
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
        self._check_ready()
        # Times with steps between them, for the calls before the capture.
        step, direction = self.program.step, field.direction
        times = [start + i * direction for i in range(shape.count)]
        step.memory.copy_(step.image(1.0, direction, times))
        step.times.copy_(field.time(start, 0).expand_as(step.times))
        self._capture()

    def _capture(self) -> None:
        program, runtime, step = self.program, self.runtime, self.program.step

        def evaluate() -> Tensor:
            return program.evaluate(0, step.y)

        with no_autocast_cache():
            with runtime.uncaptured():
                program.copies = check_pure(
                    evaluate, program.func(), step.y, runtime.forbidding_waits
                )
                # CUDA loads a kernel at its first launch, which a capture may not survive.
                program.first()
                program.body()
            try:
                self.first = runtime.capture(program.first)
                self.body = runtime.capture(program.body)
                self._run = runtime.loop(self.first, self.body, step.running)
                if self._run is None:
                    self.body = runtime.capture(program.several)
            except RuntimeError as error:
                raise cannot_capture(f"it does what a CUDA graph cannot hold ({error})") from error
        self._resume: Callable[[], None] | None = None

    def _check_ready(self) -> None:
        reason = self.runtime.ready()
        if reason is not None:
            raise CannotRun(f"engine 'graph' cannot run here: {reason}")

    def run(
        self,
        field: VectorField,
        y0: Tensor,
        times: Sequence[float],
        first_step: float | None,
        take: Callable[[Record], None],
    ) -> Tensor:
        """The outputs [T, ...]; ``state`` is then the end of the solve, and ``take`` is called with
        the records of accepted steps. The host waits for the device once, at the end (and
        each time that the records are full)."""
        program, runtime = self.program, self.runtime
        self._check_ready()
        step = program.step
        runtime.begin_use([step.memory, step.y, step.f, step.outputs, step.starts])
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
        runtime.end_use()
        return outputs

    def _read(self, take: Callable[[Record], None]) -> dict[str, Any]:
        """Waits for the device; the state of the solve."""
        step = self.program.step
        records = [step.ends, step.errors, step.stiffness]
        parts = [step.memory, *(x[:FIRST_READ].view(torch.uint8) for x in records)]
        memory, *heads = torch.cat(parts).cpu().split([x.numel() for x in parts])
        state = step.read(memory)
        noted = state["noted"]
        columns = [head.clone().view(torch.float64)[:noted].tolist() for head in heads]
        if noted > FIRST_READ:
            columns = [
                [*column, *x[FIRST_READ:noted].tolist()] if x.numel() else []
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
        """Continues a solve that stopped because its records were full."""
        if self._run is None:
            self._poll()
            return
        if self._resume is None:
            self._resume = self.runtime.loop(None, self.body, self.program.step.running)
        assert self._resume is not None
        self._resume()

    def _poll(self) -> None:
        before: Callable[[], bool] | None = None
        while True:
            self.runtime.replay(self.body)
            flag = self.runtime.start_read(self.program.step.running)
            if before is not None and not before():
                return
            before = flag


@contextmanager
def no_autocast_cache() -> Iterator[None]:
    """Autocast frees its copies of weights at its end, when a CUDA graph still needs them."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


_captured: OrderedDict[Hashable, tuple[Callable[[], Any], Any]] = OrderedDict()
_lock = threading.Lock()


def cached(
    func: Any,
    field: VectorField,
    y0: Tensor,
    kind: Hashable,
    make: Callable[[Callable[[], Any]], Any],
) -> Any:
    """What was captured of func for states like y0; at its first use ``make`` captures it, given a
    weak reference to func.

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
        HeldValues.of(func).key(),
        args,
        (y0.shape, y0.dtype, y0.device, field.layout.shapes),
        kind,
        _surroundings(y0.device),
    )
    with _lock:
        known = _captured.get(key)
        if known is not None and known[0]() is not None:
            _captured.move_to_end(key)
            return known[1]
    reference = weak_reference(func, lambda _: _forget(key))
    made = make(reference)
    with _lock:
        _captured[key] = (reference, made)
        while len(_captured) > MAX_CAPTURED:
            _captured.popitem(last=False)
    return made


def plan_for(func: Any, field: VectorField, y0: Tensor, start: float, shape: Shape) -> Plan:
    """The plan for solves of func from states like y0, made at the first of them."""
    return cached(func, field, y0, shape, lambda weak: Plan(field, weak, y0, start, shape))


def _forget(key: Hashable) -> None:
    _captured.pop(key, None)


def clear() -> None:
    """Releases all CUDA graphs and the memory that they hold."""
    with _lock:
        _captured.clear()


def _surroundings(device: torch.device) -> Hashable:
    """The global settings that decide which kernels a field launches."""
    return (
        torch.is_autocast_enabled(device.type),
        torch.get_autocast_dtype(device.type),
        # Not the older getters, which raise where a newer setting was used.
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.cudnn.conv.fp32_precision,  # pyright: ignore
        torch.are_deterministic_algorithms_enabled(),
    )
