"""The CUDA calls of the graph engine, behind an interface that tests can replace."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from fastnode import extension


class Runtime(Protocol):
    """Captures functions without arguments, which work on fixed memory, and replays them."""

    def ready(self) -> str | None:
        """Why nothing can be captured now, or None."""
        ...

    def uncaptured(self) -> Any:
        """A context for the first calls of what is captured later, which load its kernels."""
        ...

    def forbidding_waits(self) -> Any:
        """A context in which waiting for the device raises RuntimeError."""
        ...

    def capture(self, function: Callable[[], Any]) -> Any:
        """What ``replay`` replays; ``function`` is called once."""
        ...

    def replay(self, captured: Any) -> None: ...

    def loop(self, first: Any | None, body: Any, running: Tensor) -> Callable[[], None] | None:
        """One launch that runs ``first`` and then ``body`` while the flag ``running`` is set; None
        where there are no conditional nodes."""
        ...

    def start_read(self, flag: Tensor) -> Callable[[], bool]:
        """Starts to copy a flag to the host; the function that is returned waits for it."""
        ...

    def begin_use(self, buffers: list[Tensor]) -> None:
        """Makes the current stream wait for the last launch that used these buffers."""
        ...

    def end_use(self) -> None:
        """Marks the end of a launch for ``begin_use``."""
        ...


class CudaRuntime:
    """One for each plan; its CUDA graphs share their memory, as they never run concurrently."""

    def __init__(self, device: torch.device):
        self.device = device
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._home = torch.cuda.current_stream(device)
        self._done = torch.cuda.Event()
        self._pinned: list[tuple[Tensor, torch.cuda.Event]] = []
        self._turn = 0

    def ready(self) -> str | None:
        if torch.cuda.is_current_stream_capturing():
            return "another CUDA graph is being captured around it"
        return None

    @contextmanager
    def uncaptured(self) -> Iterator[None]:
        side, current = torch.cuda.Stream(self.device), torch.cuda.current_stream(self.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            yield
        current.wait_stream(side)

    @contextmanager
    def forbidding_waits(self) -> Iterator[None]:
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            # The warning that the mode may miss some synchronisation; the capture finds it.
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def capture(self, function: Callable[[], Any]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        # On a stream of the device at hand: torch's own is of the device that it captured on first.
        # Other threads may meanwhile do what a capture forbids, such as to pin memory.
        with torch.cuda.device(self.device):
            stream = torch.cuda.Stream(self.device)
            with torch.cuda.graph(
                graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
            ):
                function()
        return graph

    def replay(self, captured: torch.cuda.CUDAGraph) -> None:
        # Instantiates it at its first replay.
        captured.replay()

    def loop(
        self, first: torch.cuda.CUDAGraph | None, body: torch.cuda.CUDAGraph, running: Tensor
    ) -> Callable[[], None] | None:
        native = extension.native()
        if not native.graph_loops():
            return None
        start = 0 if first is None else first.raw_cuda_graph()
        index = self.device.index if self.device.index is not None else torch.cuda.current_device()
        made = native.GraphLoop(start, body.raw_cuda_graph(), running.data_ptr(), index)
        return made.launch

    def start_read(self, flag: Tensor) -> Callable[[], bool]:
        # Two buffers in turn: one is read while the other is being filled.
        if len(self._pinned) < 2:
            page = torch.empty(1, dtype=torch.uint8, pin_memory=True)
            self._pinned.append((page, torch.cuda.Event()))
        page, event = self._pinned[self._turn % len(self._pinned)]
        self._turn += 1
        page.copy_(flag, non_blocking=True)
        event.record(torch.cuda.current_stream(self.device))

        def read() -> bool:
            event.synchronize()
            return bool(page[0])

        return read

    def begin_use(self, buffers: list[Tensor]) -> None:
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(self._done)
        if stream != self._home:
            for each in buffers:
                each.record_stream(stream)

    def end_use(self) -> None:
        self._done.record(torch.cuda.current_stream(self.device))


def runtime_for(device: torch.device) -> Runtime:
    """Raises ValueError where there is none for a device."""
    if device.type != "cuda":
        raise ValueError(f"engine 'graph' needs a state on a CUDA device, got {device}")
    return CudaRuntime(device)
