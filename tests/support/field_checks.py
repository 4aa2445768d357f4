"""One step by a compiled field and by the module that it was made of, values and gradients."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import fastnode
from fastnode.fields.compile import evaluate

CLOSE = {torch.float32: 1e-5, torch.float64: 1e-12}


def _one_step(field: nn.Module, y: Tensor, t0: Tensor, t1: Tensor, engine: str) -> Tensor:
    """A step of Heun's method, as it has gradients of times; its error is not asked for."""
    per_sample = t0.dim() > 0
    step = (t1 - t0).detach()
    solved = fastnode.solve(
        field, y, torch.stack([t0, t1], -1), method="adaptive_heun", rtol=1e9, atol=1e9,
        first_step=step if per_sample else float(step), per_sample=per_sample, engine=engine,
    )  # fmt: skip
    return solved.ys[:, -1] if per_sample else solved.ys[-1]


def _eager(field: nn.Module, y: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
    """The same with the module; with a time for each sample, one sample after the other."""
    if t0.dim() == 0:
        return _one_step(field, y, t0, t1, "reference")

    def call(t: Tensor, y: Tensor) -> Tensor:
        return torch.cat([field(a, row[None]) for a, row in zip(t, y, strict=True)])

    step = (t1 - t0).reshape(-1, *[1] * (y.dim() - 1))
    k = call(t0, y)
    return y + step / 2 * (k + call(t1, y + step * k))


def _compiled(field: nn.Module, y: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
    return _one_step(field, y, t0, t1, "fused")


def _values_and_gradients(
    run, field: nn.Module, y: Tensor, t0: Tensor, t1: Tensor, weight: Tensor
) -> dict[str, Tensor]:
    y = y.clone().requires_grad_()
    held = {"y": y, **dict(field.named_parameters())}
    if t0.dim() == 0:
        t0, t1 = t0.clone().requires_grad_(), t1.clone().requires_grad_()
        held |= {"t0": t0, "t1": t1}
    out = run(field, y, t0, t1)
    found = torch.autograd.grad((out * weight).sum(), list(held.values()), allow_unused=True)
    values = {"y1": out.detach()}
    for (name, x), g in zip(held.items(), found, strict=True):
        values[f"gradient of {name.removeprefix('module.')}"] = (
            torch.zeros_like(x) if g is None else g
        )
    return values


def disagreements(
    field: nn.Module, y: Tensor, weight: Tensor, dtype: torch.dtype, per_sample: bool
) -> dict[str, str]:
    """What a compiled field in ``dtype`` computes differently from the module in float64.

    The difference may be 1e-5 of the largest number in float32 and 1e-12 in float64, and four times
    that of the module itself in ``dtype``: some fields enlarge what is rounded.

    Args:
        y, weight: [B, ...], the state and the weights of the sum whose gradients are compared.
        per_sample: whether each sample has its own time.
    """
    t0 = torch.tensor(0.3)
    if per_sample:
        t0 = 0.1 + 0.8 * torch.arange(len(y)) / len(y)
    given = [x.to(dtype) for x in (y, t0, t0 + 0.5, weight)]
    exact = [x.double() for x in given]
    own, double = copy.deepcopy(field).to(dtype), copy.deepcopy(field).double()
    wanted = _values_and_gradients(_eager, double, *exact)
    plain = _values_and_gradients(_eager, own, *given)
    compiled = fastnode.compile_field(own, given[0], t=float(t0.reshape(-1)[0]))
    found = _values_and_gradients(_compiled, compiled, *given)
    if not per_sample:
        with torch.no_grad():
            wanted["value"] = double(exact[1], exact[0])
            plain["value"] = own(given[1], given[0])
        found["value"] = evaluate(compiled, given[0], float(t0))
    wrong = {}
    for name, want in wanted.items():
        # Fields that differentiate inside make their results differentiable under no_grad too.
        want = want.detach()
        scale = float(want.abs().max().clamp(min=1)) if want.numel() else 1.0
        allowed = CLOSE[dtype] * scale + 4 * _distance(plain[name], want)
        error = _distance(found[name], want)
        if not error <= allowed:
            wrong[name] = f"{error:.2g}, allowed are {allowed:.2g} of {scale:.2g}"
    return wrong


def _distance(x: Tensor, y: Tensor) -> float:
    return float((x.detach().double() - y).abs().max()) if x.numel() else 0.0
