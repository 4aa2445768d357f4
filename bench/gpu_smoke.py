"""python -m bench.gpu_smoke [--here] [GROUP...]: every GPU kernel once, against float64.

Prints a line of JSON for each check. Each group is a process of its own with a limit, since a
kernel that hangs or writes where it must not takes its process along; ``--here`` runs them in this
one, for a sanitizer. New memory is NaN. Without a GPU the same checks run on the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: Relative errors that rounding explains: of kernels, and of solves at a tolerance of 1e-6.
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2}
#: Triton's interpreter multiplies the bits of bfloat16 as if they were integers.
NARROW = torch.float16 if os.environ.get("TRITON_INTERPRET") == "1" else torch.bfloat16
SOLVE = 1e-4
#: Groups at once: they wait for imports and compilers, not for the GPU.
TOGETHER = 6


class Checks:
    """Prints what the checks of a group find."""

    def __init__(self, group: str) -> None:
        self.group, self.right = group, True

    def row(self, name: str, ok: bool, **facts: Any) -> None:
        self.right &= ok
        if ok:
            facts.pop("why", None)
        print(json.dumps({"group": self.group, "check": name, "ok": ok, **facts}), flush=True)

    def __call__(self, name: str, got: Tensor, want: Tensor, bound: float) -> None:
        """By ||got - want|| / ||want||; NaN is never right."""
        a, b = got.detach().double().cpu(), want.detach().double().cpu()
        if a.shape != b.shape:
            return self.row(name, False, why=f"shape {tuple(a.shape)}, wanted {tuple(b.shape)}")
        error = float((a - b).norm() / b.norm())
        self.row(name, error <= bound, error=error, why=f"error {error:.1e}, bound {bound:.0e}")

    def equal(self, name: str, got: Tensor, want: Tensor) -> None:
        self.row(name, torch.equal(got, want), why="not bit for bit")


def randn(*shape: int, dtype: torch.dtype = torch.float32, offset: int = 0, seed: int = 0):
    """Normal, ``offset`` elements into its memory."""
    generator = torch.Generator().manual_seed(seed)
    numel = offset + torch.Size(shape).numel()
    return torch.randn(numel, generator=generator).to(DEVICE, dtype)[offset:].view(shape)


def imports(check: Checks) -> None:
    from fastnode import extension

    versions: dict[str, Any] = {"python": sys.version.split()[0], "torch": torch.__version__}
    if DEVICE == "cuda":
        import triton

        versions |= {"triton": triton.__version__, "gpu": torch.cuda.get_device_name()}
        versions["cuda runtime"] = torch.version.cuda
    built = dict(extension.native().build_info()) if extension.AVAILABLE else {}
    ready = extension.AVAILABLE and (DEVICE == "cpu" or built.get("cuda") == "yes")
    check.row("extension", ready, why=extension.REASON, **versions, **built)
    if ready:
        # Torch gives its stream by a symbol that the extension finds at this call.
        y = randn(3)
        check("stream", torch.ops.fastnode.rk_stage.default(y, [y], [1.0]), 2 * y, 1e-6)
        check.row("conditional nodes", extension.native().graph_loops() or DEVICE == "cpu")


def ceilings(check: Checks) -> None:
    """A copy and a product, to which everything else is compared."""
    from bench.gpu_rows import copy_bandwidth, product_rate

    check.row("copy", True, bytes_a_second=copy_bandwidth())
    check.row("product", True, operations_a_second=product_rate())


def rk(check: Checks) -> None:
    from fastnode.ops import rk_adjoint, rk_dense, rk_error, rk_rows, rk_stage

    c = [0.3, -0.15, 0.1, -0.08]
    for dtype in (torch.float32, torch.bfloat16):
        for offset in (0, 1):
            # A short row, one of several pieces, and rows of a batch.
            for shape in ((63,), (70001,), (300, 2), (7, 1025)):
                tensors = [randn(*shape, dtype=dtype, offset=offset, seed=i) for i in range(6)]
                (y0, y1, *k), (z0, z1, *w) = tensors, [x.double().cpu() for x in tensors]
                name = f"{str(dtype)[6:]} {shape} offset {offset}"
                near = ROUNDING[dtype]

                def same(op: str, got: Tensor, want: Tensor, name=name, near=near) -> None:
                    check(f"{op} {name}", got, want, near)

                same("rk_stage", rk_stage.rk_stage(y0, k, c), rk_stage.rk_stage_reference(z0, w, c))
                same(
                    "rk_adjoint",
                    rk_adjoint.rk_adjoint(k, c),
                    rk_adjoint.rk_adjoint_reference(w, c),
                )
                rows = [c, c[::-1]]
                same(
                    "rk_dense",
                    rk_dense.rk_dense(y0, k, rows),
                    rk_dense.rk_dense_reference(z0, w, rows),
                )
                same(
                    "rk_error",
                    rk_error.rk_error(y0, y1, k, c, 1e-2, 1e-3),
                    rk_error.rk_error_reference(z0, z1, w, c, 1e-2, 1e-3),
                )
                if len(shape) == 1:
                    continue
                here = torch.linspace(0.1, 0.7, shape[0], dtype=torch.float64)
                h = here.to(DEVICE)
                weights = torch.linspace(-1, 1, 4 * shape[0], dtype=torch.float64).view(-1, 4)
                same(
                    "rk_stage_rows",
                    rk_rows.rk_stage_rows(y0, k, c, h),
                    rk_rows.rk_stage_rows_reference(z0, w, c, here),
                )
                same(
                    "rk_dense_rows",
                    rk_rows.rk_dense_rows(y0, k, weights.to(DEVICE)),
                    rk_rows.rk_dense_rows_reference(z0, w, weights),
                )
                same(
                    "rk_error_rows",
                    rk_rows.rk_error_rows(y0, y1, k, c, h, 0.1 * h, h),
                    rk_rows.rk_error_rows_reference(z0, z1, w, c, here, 0.1 * here, here),
                )


def mlp(dim: int, hidden: int, depth: int = 2, dtype: torch.dtype = torch.float32) -> nn.Module:
    from fastnode.nn import MLPField

    torch.manual_seed(0)
    return MLPField(dim, hidden, depth, "tanh").to(DEVICE, dtype)


TIMES = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)


def solved(field: nn.Module, y0: Tensor, **options: Any) -> list[Tensor]:
    """The states at TIMES, and the gradients of y0 and of parameters."""
    import fastnode

    field.zero_grad()
    y = y0.clone().requires_grad_()
    options = {"rtol": 1e-6, "atol": 1e-6, **options}
    if "options" in options:
        del options["rtol"], options["atol"]
        ys = fastnode.odeint(field, y, TIMES.to(y.device), **options)
    else:
        ys = fastnode.solve(field, y, TIMES.to(y.device), **options).ys
    ys.square().sum().backward()
    assert y.grad is not None
    return [ys, y.grad, *(p.grad.clone() for p in field.parameters())]


def against_reference(check: Checks, name: str, field: nn.Module, y0: Tensor, **options: Any):
    """A solve with its gradients by the fused engine, and in float64 on the CPU by the native."""
    import copy

    found = solved(field, y0, engine="fused", **options)
    wide = copy.deepcopy(field).to("cpu", torch.float64)
    closer = {} if "options" in options else {"rtol": 1e-9, "atol": 1e-9}
    engine = "reference" if options.get("per_sample") else "native"
    wanted = solved(wide, y0.double().cpu(), engine=engine, **(options | closer))
    parts = ("states", "gradient of y0", *(f"gradient of {n}" for n, _ in field.named_parameters()))
    for part, got, want in zip(parts, found, wanted, strict=True):
        check(f"{name}: {part}", got, want, SOLVE)


def fused(check: Checks) -> None:
    """Weights in shared memory; steps for all samples, for each, and along a grid; backwards."""
    y0 = randn(60, 3)
    against_reference(check, "joint", mlp(3, 16), y0)
    wide = y0.double()
    against_reference(check, "joint, float64", mlp(3, 16, dtype=torch.float64), wide)
    against_reference(check, "dopri8", mlp(3, 16), y0, method="dopri8")
    against_reference(check, "per sample", mlp(3, 16), y0, per_sample=True)
    grid = {"method": "rk4", "options": {"step_size": 0.1}}
    against_reference(check, "along a grid", mlp(3, 16), y0, **grid)


def fused_far(check: Checks) -> None:
    """Weights that shared memory does not hold."""
    field, y0 = mlp(64, 512), 0.1 * randn(40, 64)
    against_reference(check, "joint, weights in global memory", field, y0)
    against_reference(check, "per sample, weights in global memory", field, y0, per_sample=True)


def fused_alone(check: Checks) -> None:
    """A thread for each sample, which takes very many of them."""
    import fastnode

    count = 80_000 if DEVICE == "cuda" else 800
    field, y0 = mlp(3, 8), randn(count, 3)
    with torch.no_grad():
        options = {"per_sample": True, "rtol": 1e-5, "atol": 1e-5}
        found = fastnode.solve(field, y0, TIMES.to(DEVICE), engine="fused", **options).ys
        few = slice(None, None, count // 100)
        wanted = fastnode.solve(
            mlp(3, 8, dtype=torch.float64).cpu(), y0[few].double().cpu(), TIMES, **options
        ).ys
    check("per sample, a thread each", found[:, few], wanted, 1e-3)


def tensor_cores(check: Checks) -> None:
    torch.set_float32_matmul_precision("high")
    y0 = 0.1 * randn(256, 64)
    against_reference(check, "joint by tensor cores", mlp(64, 128), y0)
    wide = 0.1 * randn(256, 64, dtype=torch.float64)
    against_reference(check, "float64 by tensor cores", mlp(64, 128, dtype=torch.float64), wide)


def triton(check: Checks) -> None:
    from fastnode.ops.interpolant import path_coefficients_reference
    from fastnode.triton_kernels import flow_loss, interpolant, linear_flow_loss

    for dtype in (torch.float32, NARROW):
        near = ROUNDING[dtype]
        z0, z1, v = (randn(300, 200, dtype=dtype, seed=i) for i in range(3))
        t = torch.linspace(0, 1, 300, device=DEVICE)
        coef = torch.stack([1 - t, t, -torch.ones_like(t), torch.ones_like(t)])
        a, b, da, db = (row.double()[:, None] for row in coef)
        x0, x1, w = z0.double(), z1.double(), v.double()

        def same(op: str, got: Any, want: Tensor, dtype=dtype, near=near) -> None:
            check(f"{op} {str(dtype)[6:]}", got, want, near)

        for kind in range(3):
            found = interpolant.path_coefficients(t, kind, True)
            wanted = path_coefficients_reference(t.double(), kind, False)
            check(f"path coefficients {kind}", found, wanted, 1e-6)
        zt, ut = interpolant.interpolant(z0, z1, coef, True)
        same("interpolant", zt, a * x0 + b * x1)
        same("interpolant, velocity", ut, da * x0 + db * x1)
        d0, d1 = interpolant.interpolant_backward(z0, z1, coef, -1.0, True, True)
        same("interpolant backward, z0", d0, a * x0 - da * x1)
        same("interpolant backward, z1", d1, b * x0 - db * x1)
        seed = torch.tensor(7, device=DEVICE)
        for kind in range(3):
            drawn, c, zt = interpolant.sampled_interpolant(z0, z1, seed, kind, 0.1)
            same(
                f"sampled interpolant {kind}",
                zt,
                c[0].double()[:, None] * x0 + c[1].double()[:, None] * x1,
            )
            check.row(f"times {kind}", bool(((drawn >= 0) & (drawn < 1)).all()))
        residual = w - (da * x0 + db * x1)
        scale = 2 / residual.numel()
        loss, grad = flow_loss.flow_loss(v, z0, z1, coef, scale / 2, scale, True)
        same("flow loss", loss, residual.square().mean())
        same("flow loss, gradient", grad, scale * residual)
        assert grad is not None
        same(
            "scale", flow_loss.scale_(grad, torch.tensor(3.0, device=DEVICE)), 3 * scale * residual
        )
        h, weight, bias = (randn(*s, dtype=dtype) for s in ((300, 64), (200, 64), (200,)))
        precision = "ieee"
        loss, grad = linear_flow_loss.linear_flow_loss(
            h, weight, bias, z0, z1, coef, scale / 2, scale, True, precision
        )
        residual = h.double() @ weight.double().T + bias.double() - (da * x0 + db * x1)
        same("linear flow loss", loss, residual.square().mean())
        same("linear flow loss, gradient", grad, scale * residual)
        same(
            "gradient of the input",
            linear_flow_loss.input_gradient(v, weight, precision),
            w @ weight.double(),
        )
        dw, db_ = linear_flow_loss.weight_gradient(v, h, True, precision)
        same("gradient of the weight", dw, w.T @ h.double())
        same("gradient of the bias", db_, w.sum(0))


def trajectories(check: Checks) -> None:
    import fastnode
    from bench.gpu_fields import lorenz, lorenz_in_torch

    # More than one program has lanes.
    y0 = 1 + randn(40, 3, dtype=torch.float64).abs()
    rho = torch.linspace(0, 21, 40, dtype=torch.float64, device=DEVICE)
    options = {"rtol": 1e-4, "atol": 1e-4}
    found = fastnode.solve_triton(lorenz, y0, TIMES.to(DEVICE), (rho,), **options).ys
    wanted = fastnode.solve(
        lorenz_in_torch, y0.cpu(), TIMES, args=(rho.cpu(),), per_sample=True, **options
    ).ys
    check("trajectories", found, wanted, 1e-8)


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 2)).to(DEVICE)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.sin(3 * t) * self.net(y) - y


def graph_solves(check: Checks) -> None:
    import fastnode

    field, y0 = Field(), randn(64, 2)
    for times in (TIMES[[0, 2]], TIMES):
        with torch.no_grad():
            native, graph = (
                fastnode.solve(field, y0, times, engine=engine, rtol=1e-6, atol=1e-6).ys
                for engine in ("native", "graph")
            )
        check.equal(f"{len(times)} times", graph, native)


def graph_loop(check: Checks) -> None:
    graph_solves(check)


def graph_replays(check: Checks) -> None:
    """As where CUDA has no conditional nodes."""
    from fastnode.engines.cuda_graph.runtime import CudaRuntime

    CudaRuntime.loop = lambda *_: None  # pyright: ignore
    graph_solves(check)


def graph_eager(check: Checks) -> None:
    """With every kernel loaded at the start, so that none is loaded inside of a capture."""
    check.row("loading", os.environ.get("CUDA_MODULE_LOADING") == "EAGER")
    graph_solves(check)


def checkpoint(check: Checks) -> None:
    field, y0 = Field(), randn(64, 2)
    native, *graphs = (
        solved(field, y0, engine=engine, adjoint="checkpoint")
        for engine in ("native", "graph", "graph")
    )
    for n, graph in enumerate(graphs):
        for i, (got, want) in enumerate(zip(graph, native, strict=True)):
            check(f"pass {n}, tensor {i}", got, want.double(), 1e-5)


GROUPS: dict[str, Callable[[Checks], None]] = {
    "import": imports,
    "ceilings": ceilings,
    # The slowest first.
    "triton": triton,
    "trajectories": trajectories,
    "rk": rk,
    "fused": fused,
    "fused_far": fused_far,
    "fused_alone": fused_alone,
    "tensor_cores": tensor_cores,
    "graph_loop": graph_loop,
    "graph_replays": graph_replays,
    "graph_eager": graph_eager,
    "checkpoint": checkpoint,
}
#: Seconds of a group, and of the ceilings, beside which nothing else runs.
LIMIT, ALONE = 35, 15


def run_here(group: str) -> bool:
    check = Checks(group)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        GROUPS[group](check)
    except Exception as error:
        check.row("group", False, why=f"{type(error).__name__}: {error}"[:500])
    return check.right


def run_apart(group: str) -> bool:
    """Passes on the output of a process of its own, and says how that ended."""
    begin, limit = time.monotonic(), ALONE if group == "ceilings" else LIMIT
    command = [sys.executable, "-m", "bench.gpu_smoke", "--here", group]
    environment = dict(os.environ)
    if group == "graph_eager":
        environment["CUDA_MODULE_LOADING"] = "EAGER"
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        text, why = process.communicate(timeout=limit)[0], f"ended with {process.returncode}"
    except subprocess.TimeoutExpired:
        process.kill()
        text, why = process.communicate()[0], f"out of time ({limit} s)"
    # In one piece, as other threads write too.
    sys.stdout.write(text if text.endswith("\n") or not text else text + "\n")
    seconds = round(time.monotonic() - begin, 1)
    Checks(group).row("process", process.returncode == 0, why=why, seconds=seconds)
    return process.returncode == 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_smoke")
    parser.add_argument("--here", action="store_true", help="in this process")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=", ".join(GROUPS))
    parsed = parser.parse_args(arguments)
    if unknown := set(parsed.groups) - set(GROUPS):
        parser.error(f"no group is named {', '.join(sorted(unknown))}")
    groups = parsed.groups or [name for name in GROUPS if name != "import"]
    if parsed.here or groups == ["import"]:
        return 0 if all([run_here(group) for group in groups]) else 1
    # What others run meanwhile would slow a ceiling.
    right = [run_apart(group) for group in groups if group == "ceilings"]
    with ThreadPoolExecutor(TOGETHER) as pool:
        right += pool.map(run_apart, (group for group in groups if group != "ceilings"))
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
