"""python -m bench.gpu_rows PART...: what a GPU is measured by, a line of JSON a row.

Times are ratios against references, in turns in one process, after the results were found close.
Kernels are timed by replays of a CUDA graph, which leave the host out; what the host takes for a
call stands beside it. Inputs rotate among sets that together outgrow the L2 cache. Without a GPU
all parts run at sizes of a few numbers, to be tested themselves: such times say nothing.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnode
from bench import flow_step
from bench.ratio import seconds
from fastnode.flow import Linear, flow_loss, linear_flow_loss

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
Run = Callable[[], Any]
#: [B, D] of the flow ops, and (state, hidden, batch) of solves: overhead alone, both, both with
#: more weights than shared memory holds, arithmetic alone.
SHAPES = [(4096, 3072), (65536, 512)] if GPU else [(6, 32)]
SIZES = [(2, 64, 128), (64, 128, 1024), (512, 512, 1024), (512, 512, 8192)] if GPU else [(2, 8, 3)]
DTYPES = (torch.bfloat16, torch.float32)
#: Passes over a tensor, of which each op reads and writes so many.
PASSES = {"interpolant": 3, "loss": 4, "backward": 4}
COPY = 1 << 28 if GPU else 1 << 10
MATRIX = 8192 if GPU else 64
MANY = 1_000_000 if GPU else 20
TOLERANCES = (1e-8, 1e-5) if GPU else (1e-3,)
ROUNDS = 7
TIMES = torch.tensor([0.0, 1.0])
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def row(subject: str, case: str, times: Sequence[float], **facts: Any) -> None:
    """Prints the median of ``times`` in seconds with its quartiles."""
    low, _, high = statistics.quantiles(times, n=4)
    median = statistics.median(times)
    found = {"subject": subject, "case": case, "microseconds": 1e6 * median, **facts}
    print(json.dumps({**found, "quartiles": [low, median, high], "rounds": len(times)}), flush=True)


class Failures:
    """Cases that broke: each is a row of its own, and the others go on."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def case(self, subject: str, case: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.count += 1
            why = f"{type(error).__name__}: {error}"[:300]
            print(json.dumps({"subject": subject, "case": case, "wrong": why}), flush=True)


def replayed(calls: Sequence[Run], rounds: int = ROUNDS) -> list[float]:
    """Seconds of one call on the device: all of them, one after the other, as one CUDA graph."""
    for call in calls:
        call()
    if not GPU:
        return [seconds(lambda: [call() for call in calls], 1) / len(calls) for _ in range(rounds)]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    graph.replay()
    for _ in range(rounds):
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1e-3 * begin.elapsed_time(end) / len(calls))
    return times


def host(call: Run, count: int = 20) -> float:
    """Microseconds until a call returns, whatever the device does meanwhile."""
    call()
    if GPU:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(count):
        call()
    return 1e6 * (time.perf_counter() - begin) / count


def in_turns(contestants: Mapping[str, Run], rounds: int = 5, budget: float = 0.05):
    """Seconds of a call of each, with the device's work: a list of as many as there are rounds."""
    once = {name: seconds(call, 2) for name, call in contestants.items()}
    counts = {name: max(1, int(budget / max(each, 1e-7))) for name, each in once.items()}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            times[name].append(seconds(call, counts[name], settle=False))
    return times


def ratios(times: Mapping[str, Sequence[float]], of: str) -> dict[str, float]:
    """How many times longer each other one takes: the median over rounds."""
    return {
        name: statistics.median(a / b for a, b in zip(each, times[of], strict=True))
        for name, each in times.items()
        if name != of
    }


@functools.cache
def copy_bandwidth() -> float:
    """Bytes read and written a second by a copy within the device."""
    source = torch.randn(COPY, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / statistics.median(replayed([lambda: target.copy_(source)]))


def product_rate() -> float:
    """Operations a second of a product of bfloat16 matrices."""
    a, b = (torch.randn(MATRIX, MATRIX, device=DEVICE).bfloat16() for _ in range(2))
    times = [seconds(lambda: a @ b, 5) for _ in range(3)]
    return 2 * MATRIX**3 / statistics.median(times)


def near(got: Sequence[Tensor], want: Sequence[Tensor], dtype: torch.dtype, ulps: float = 8):
    eps = ulps * torch.finfo(dtype).eps
    for a, b in zip(got, want, strict=True):
        size = b.double().abs().max().item()
        torch.testing.assert_close(a.double(), b.double(), rtol=eps, atol=eps * size)


def batch(shape: tuple[int, int], dtype: torch.dtype, seed: int):
    """z0, z1, t and v."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    z0, z1, v = (torch.randn(shape, generator=generator, device=DEVICE).to(dtype) for _ in range(3))
    return z0, z1, torch.rand(shape[0], generator=generator, device=DEVICE), v


def sets(shape: tuple[int, int], dtype: torch.dtype, tensors: int) -> int:
    """So many of so many tensors are several times the L2 cache."""
    if not GPU:
        return 2
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    return max(2, 1 + 4 * l2 // (tensors * shape[0] * shape[1] * dtype.itemsize))


def flow_op(op: str, shape: tuple[int, int], dtype: torch.dtype, seed: int) -> Run:
    ops = torch.ops.fastnode
    z0, z1, t, v = batch(shape, dtype, seed)
    coef = ops.path_coefficients(t, 0, False)
    stand_in = ops.interpolant(z0, z1, coef, False)[1]
    return {
        "interpolant": lambda: ops.interpolant(z0, z1, coef, False),
        "loss": lambda: ops.flow_loss(v, stand_in, z0, z1, coef, True, True),
        "backward": lambda: ops.interpolant_backward(z0, z1, coef, -1.0, True, True),
    }[op]


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@torch.no_grad()
def measure_op(op: str, shape: tuple[int, int], dtype: torch.dtype, subject: str) -> None:
    calls = [flow_op(op, shape, dtype, seed) for seed in range(sets(shape, dtype, 3))]
    times = replayed(calls)
    moved = PASSES[op] * shape[0] * shape[1] * dtype.itemsize
    share = moved / statistics.median(times) / copy_bandwidth()
    row(
        subject, str(shape), times, ratios={},
        share_of_copy_bandwidth=share, host_microseconds=round(host(calls[0]), 1),
    )  # fmt: skip


def ops(failures: Failures) -> None:
    """Each flow op by itself."""
    for dtype, shape in itertools.product(DTYPES, SHAPES):
        with failures.case("flow kernels", f"{shape}, {name(dtype)}"), torch.no_grad():
            first = batch(shape, dtype, 0)
            near(flow_step.kernels(*first), flow_step.by_hand(*(x.double() for x in first)), dtype)
        for op in PASSES:
            with failures.case(f"{op}, {name(dtype)}", str(shape)):
                measure_op(op, shape, dtype, f"{op}, {name(dtype)}")


def tiles(failures: Failures) -> None:
    """Tile shapes: what WARPS and VECTORS of triton_kernels/tiling.py go by."""
    from fastnode.triton_kernels import flow_loss, interpolant, tiling

    modules = (tiling, flow_loss, interpolant)
    before = tiling.WARPS, tiling.VECTORS
    for op, warps, vectors in itertools.product(("interpolant", "loss"), (2, 4, 8), (1, 2, 4)):
        for module in modules:
            module.WARPS, module.VECTORS = warps, vectors
        subject = f"{op}, bfloat16, {warps} x {vectors}"
        with failures.case(subject, str(SHAPES[0])):
            measure_op(op, SHAPES[0], torch.bfloat16, subject)
    for module in modules:
        module.WARPS, module.VECTORS = before


class Field(nn.Module):
    def __init__(self, state: int, hidden: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = nn.Linear(state, hidden), nn.Tanh(), nn.Linear(hidden, state)
        self.net = nn.Sequential(*layers).to(DEVICE)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)


def solver(size: tuple[int, int, int], engine: str) -> Run:
    """A solve by dopri5 at 1e-5, by an engine or by torchdiffeq."""
    state, hidden, count = size
    field = Field(state, hidden)
    y0 = torch.randn(count, state, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    options = {"method": "dopri5", "rtol": 1e-5, "atol": 1e-5}
    if engine == "torchdiffeq":
        import torchdiffeq

        times = TIMES.to(DEVICE)
        return lambda: torchdiffeq.odeint(field, y0, times, **options)[-1]
    func = fastnode.fuse(field) if engine == "fused" else field
    return lambda: fastnode.odeint(func, y0, TIMES, engine=engine, **options)[-1]


@torch.no_grad()
def odeint(failures: Failures, engines: Sequence[str] = ("native", "graph", "fused")) -> None:
    for size in SIZES:
        theirs = solver(size, "torchdiffeq")
        contestants, wanted = {"torchdiffeq": theirs}, theirs()
        for engine in engines:
            with failures.case(f"odeint, {engine}", str(size)):
                ours = solver(size, engine)
                try:
                    found = ours()
                except ValueError as error:
                    refused = {"subject": f"odeint, {engine}", "case": str(size)}
                    print(json.dumps({**refused, "refused": str(error)[:200]}), flush=True)
                    continue
                torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
                contestants[engine] = ours
        with failures.case("odeint", str(size)):
            times = in_turns(contestants)
            for engine in contestants:
                if engine != "torchdiffeq":
                    against = ratios(times, engine)
                    row(f"odeint, {engine}", str(size), times[engine], ratios=against)


def training(failures: Failures) -> None:
    """The flow part of a training step, against eager PyTorch and torch.compile."""

    def plainly(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        return flow_step.plain(a, b, t.to(a.dtype), flow_step.opaque)

    for shape, dtype in zip(SHAPES, DTYPES, strict=False):
        with failures.case(f"flow step, {name(dtype)}", str(shape)):
            torch._dynamo.reset()
            z0, z1, t, _ = batch(shape, dtype, 0)
            inputs = z0.requires_grad_(), z1.requires_grad_(), t
            contestants: dict[str, Run] = {}
            functions = {"fastnode": flow_step.ours, "eager": plainly}
            functions["compile"] = torch.compile(plainly, dynamic=False)
            want = [x.clone() for x in flow_step.step(plainly, *inputs)]
            for each, function in functions.items():
                # Plain PyTorch rounds after every operation.
                near(flow_step.step(function, *inputs), want, dtype, 64)
                contestants[each] = functools.partial(flow_step.step, function, *inputs)
            if GPU:
                with failures.case(f"flow step as a CUDA graph, {name(dtype)}", str(shape)):
                    contestants["CUDA graph"] = captured_step(flow_step.ours, inputs)
            times = in_turns(contestants)
            row(
                f"flow step, {name(dtype)}", str(shape), times["fastnode"],
                ratios=ratios(times, "fastnode"),
                host_microseconds=round(host(contestants["fastnode"]), 1),
            )  # fmt: skip


def captured_step(function: Callable[..., Tensor], inputs: tuple[Tensor, Tensor, Tensor]) -> Run:
    """The same step as one CUDA graph."""
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            flow_step.step(function, *inputs)
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        flow_step.step(function, *inputs)
    return graph.replay


@torch.no_grad()
def waits(failures: Failures) -> None:
    """How often the host waits for the device in one solve, as the profiler sees it."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if GPU else [])]

    def count(run: Run) -> int:
        with profile(activities=activities) as found:
            run()
        return sum(event.name in WAITS for event in found.events())

    # The one whose CUDA graph has conditional nodes last: they have broken profilers.
    for engine in ("native", "fused", *(["graph"] if GPU else [])):
        with failures.case(f"waits, {engine}", str(SIZES[0])):
            run = solver(SIZES[0], engine)
            run()
            found = count(run) - count(lambda: None)
            row(f"waits, {engine}", str(SIZES[0]), [seconds(run, 3)] * 2, waits=max(0, found))


@torch.no_grad()
def counted(failures: Failures) -> None:
    """One launch each of three kernels, for a profiler that counts."""
    for op in ("interpolant", "loss"):
        with failures.case(op, str(SHAPES[0])):
            flow_op(op, SHAPES[0], torch.bfloat16, 0)()
    with failures.case("fused", str(SIZES[-1])):
        solver(SIZES[min(1, len(SIZES) - 1)], "fused")()


def per_sample(func: Any, y0: Tensor, args: tuple[Any, ...], engine: str, tolerance: float):
    """What fastnode.solve does before it makes a record of the steps of each sample."""
    from fastnode.control.request import SolveRequest
    from fastnode.engines.select import solve_per_sample
    from fastnode.problem.batch import make_samples

    request = SolveRequest(
        "tsit5", tolerance, tolerance, engine,
        controller=fastnode.Controller(), first_step=1e-3,
    )  # fmt: skip
    ts = TIMES.to(y0.device, torch.float64)
    return solve_per_sample(make_samples(func, y0, ts, args), request)


@torch.no_grad()
def samples(failures: Failures) -> None:
    """Per-sample stepping of very many states of three numbers."""
    torch.manual_seed(0)
    field = fastnode.nn.MLPField(3, 32, 2, "tanh", "none").to(DEVICE)
    y0 = torch.randn(MANY, 3, device=DEVICE)
    runs = {
        "fused": lambda: per_sample(field, y0, (), "fused", 1e-5),
        "reference": lambda: per_sample(field, y0, (), "reference", 1e-5),
    }
    with failures.case("tsit5 per sample, fused", f"{MANY} x 3"):
        found, wanted = runs["fused"](), runs["reference"]()
        torch.testing.assert_close(found.ys, wanted.ys, rtol=1e-3, atol=1e-3)
        times = in_turns(runs, rounds=3)
        against = ratios(times, "fused")
        row("tsit5 per sample, fused", f"{MANY} x 3", times["fused"], ratios=against)


@torch.no_grad()
def lorenz(failures: Failures) -> None:
    """A million Lorenz trajectories with per-sample steps, by one Triton kernel and by PyTorch.

    The problem is that of DiffEqGPU.jl's kernels: sigma = 10, beta = 2.666, rho in [0, 21], from
    (1, 0, 0) over [0, 1], adaptive tsit5 in float32, both tolerances 1e-8, a first step of 1e-3.
    The fastest of its runs took 4.66 ms for 2**19 trajectories and 17.84 ms for 2**21 on a Tesla
    V100, another card than any that this is for. Source: github.com/utkarsh530/GPUODEBenchmarks,
    paper_artifacts/data/Tesla_V100/Julia/Julia_times_adaptive.txt (Utkarsh et al., Automated
    translation and accelerated solving of differential equations on multiple GPU platforms, 2023).
    float32 cannot hold that tolerance, so a looser one stands beside it.
    """
    from bench import gpu_fields

    y0 = torch.tensor([1.0, 0.0, 0.0], device=DEVICE).repeat(MANY, 1)
    rho, ts = torch.linspace(0, 21, MANY, device=DEVICE), TIMES.to(DEVICE, torch.float64)
    few = slice(0, MANY, max(1, MANY // 1000))
    for tolerance in TOLERANCES:
        options = {"rtol": tolerance, "atol": tolerance, "first_step": 1e-3, "throw": False}
        ours = functools.partial(
            fastnode.solve_triton, gpu_fields.lorenz, y0, ts, (rho,), **options
        )
        theirs = functools.partial(
            per_sample, gpu_fields.lorenz_in_torch, y0, (rho,), "reference", tolerance
        )
        with failures.case("Lorenz, tsit5 per sample", f"{MANY}, {tolerance:g}"):
            exact = per_sample(
                gpu_fields.lorenz_in_torch,
                y0[few].double(),
                (rho[few].double(),),
                "reference",
                1e-11,
            ).ys[-1]
            errors = {
                each: (run().ys[-1, few].double() - exact).abs().max().item()
                for each, run in (("fastnode", ours), ("PyTorch", theirs))
            }
            assert errors["fastnode"] <= 2 * errors["PyTorch"] + 1e-5, errors
            times = in_turns({"fastnode": ours, "PyTorch": theirs}, rounds=3)
            against = ratios(times, "fastnode")
            case = f"{MANY}, {tolerance:g}"
            row("Lorenz, tsit5 per sample", case, times["fastnode"], ratios=against, errors=errors)


def last_layer(failures: Failures) -> None:
    """A linear layer with the loss of what it returns, and all gradients."""
    hidden = 2048 if GPU else 16
    torch.set_float32_matmul_precision("high")

    def apart(h, weight, bias, z0, z1, t):
        _, target = Linear().interpolate(z0, z1, t, extrapolate=True)
        return flow_loss(F.linear(h, weight, bias), target)

    def fused(h, weight, bias, z0, z1, t):
        _, target = Linear().interpolate(z0, z1, t, extrapolate=True)
        return linear_flow_loss(h, weight, bias, target)

    def eager(h, weight, bias, z0, z1, t):
        return ((F.linear(h, weight, bias) - (z1 - z0)).float() ** 2).mean()

    def step(function, leaves):
        for x in leaves:
            x.grad = None
        loss = function(*leaves)
        loss.backward()
        return [loss.detach(), *(x.grad for x in leaves[:5])]

    for shape, dtype in itertools.product(SHAPES, DTYPES):
        with failures.case(f"last layer and loss, {name(dtype)}", str(shape)):
            z0, z1, t, _ = batch(shape, dtype, 0)
            h, weight = (randn.to(dtype) for randn in (
                torch.randn(shape[0], hidden, device=DEVICE),
                hidden**-0.5 * torch.randn(shape[1], hidden, device=DEVICE),
            ))  # fmt: skip
            leaves = [h, weight, torch.randn(shape[1], device=DEVICE).to(dtype), z0, z1]
            leaves = [*(x.requires_grad_() for x in leaves), t]
            want = [x.clone() for x in step(apart, leaves)]
            # Products of TF32 and of bfloat16 are rounded at the eighth to eleventh bit.
            near(step(fused, leaves), want, torch.bfloat16, 4)
            torch._dynamo.reset()
            functions = {"fastnode": fused, "apart": apart, "eager": eager}
            functions["compile"] = torch.compile(eager, dynamic=False)
            calls = {each: functools.partial(step, f, leaves) for each, f in functions.items()}
            times = in_turns(calls, rounds=3)
            against = ratios(times, "fastnode")
            case = str((*shape, hidden))
            row(f"last layer and loss, {name(dtype)}", case, times["fastnode"], ratios=against)


PARTS: dict[str, Callable[[Failures], None]] = {
    each.__name__: each
    for each in (ops, tiles, odeint, training, waits, counted, samples, lorenz, last_layer)
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_rows")
    parser.add_argument("parts", nargs="+", choices=PARTS)
    failures = Failures()
    for part in parser.parse_args(arguments).parts:
        with failures.case(part, "whole part"):
            PARTS[part](failures)
    return 1 if failures.count else 0


if __name__ == "__main__":
    sys.exit(main())
