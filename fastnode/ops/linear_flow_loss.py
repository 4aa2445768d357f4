"""linear_flow_loss: the flow loss of what a linear layer returns, which is never stored."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnode.ops import dispatch
from fastnode.ops.flow_loss import flow_loss_reference, loss_derivatives
from fastnode.ops.interpolant import combine

_TAKEN = (torch.float32, torch.bfloat16, torch.float16)


def linear_flow_loss_reference(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z0: Tensor,
    z1: Tensor,
    coef: Tensor,
    mean: bool,
) -> Tensor:
    """What the op computes, in plain PyTorch."""
    return flow_loss_reference(F.linear(h, weight, bias), z0, z1, coef, mean)


def runs_fused(h: Tensor, weight: Tensor, bias: Tensor | None, z0: Tensor) -> bool:
    """Whether the kernels take these tensors and may be faster.

    The matrix units multiply 16-bit floats, and float32 if TF32 is allowed; and rows must be
    multiples of 16 bytes, or they are read element by element.
    """
    tensors = [x for x in (h, weight, bias, z0) if x is not None]
    plain = all(type(x) in (Tensor, torch.nn.Parameter) for x in tensors)
    if not (plain and dispatch.use_ops() and all(map(dispatch.use_triton, tensors))):
        return False
    if not (h.dim() == weight.dim() == z0.dim() == 2 and h.numel() and z0.numel()):
        return False
    if any(x.dtype != h.dtype for x in tensors) or h.dtype not in _TAKEN:
        return False
    if h.dtype == torch.float32 and not dispatch.tf32_allowed():
        return False
    return all(x.shape[1] * x.element_size() % 16 == 0 for x in (h, z0))


def _precision() -> str:
    return "tf32" if dispatch.tf32_allowed() else "ieee"


def linear_flow_loss(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stand_in: Tensor,
    z0: Tensor,
    z1: Tensor,
    coef: Tensor,
    mean: bool,
) -> Tensor:
    """The scalar loss; the gradient for z0, z1 and coef flows through the stand-in."""
    inputs = (h, weight, stand_in) if bias is None else (h, weight, bias, stand_in)
    with_grad = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    op = torch.ops.fastnode.linear_flow_loss.default
    return op(h, weight, bias, stand_in, z0, z1, coef, mean, with_grad)[0]


def _forward(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stand_in: Tensor,
    z0: Tensor,
    z1: Tensor,
    coef: Tensor,
    mean: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor]:
    derivative, scale = loss_derivatives(h.dtype, z0.numel(), mean)
    if dispatch.use_triton(h):
        from fastnode.triton_kernels.linear_flow_loss import linear_flow_loss as launch

        loss, grad = launch(
            h.contiguous(),
            weight.contiguous(),
            None if bias is None else bias.contiguous(),
            z0.contiguous(),
            z1.contiguous(),
            coef.contiguous(),
            derivative / 2,
            scale,
            with_grad,
            _precision(),
        )
        return loss, h.new_empty(0) if grad is None else grad
    v = F.linear(h, weight, bias)
    loss = flow_loss_reference(v, z0, z1, coef, mean)
    if not with_grad:
        return loss, h.new_empty(0)
    return loss, ((v - combine(z0, z1, coef[2], coef[3])) * scale).contiguous()


def _fake(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stand_in: Tensor,
    z0: Tensor,
    z1: Tensor,
    coef: Tensor,
    mean: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor]:
    loss = h.new_empty((), dtype=torch.promote_types(h.dtype, torch.float32))
    return loss, h.new_empty(z0.shape if with_grad else 0)


def _gradients(
    dv: Tensor, h: Tensor, weight: Tensor, need_h: bool, need_weight: bool, need_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of h, weight and bias from that of the layer's output; empty if not needed."""
    if not dispatch.use_triton(dv):
        dh, dw, db = _plain_gradients(dv, h, weight, need_h, need_weight, need_bias)
    else:
        from fastnode.triton_kernels import linear_flow_loss as kernels

        dv, precision = dv.contiguous(), _precision()
        dh = kernels.input_gradient(dv, weight.contiguous(), precision) if need_h else None
        dw, db = None, None
        if need_weight:
            dw, db = kernels.weight_gradient(dv, h.contiguous(), need_bias, precision)
        elif need_bias:
            db = dv.sum(dim=0)
    made = [dv.new_empty(0) if x is None else x for x in (dh, dw, db)]
    return made[0], made[1], made[2]


def _plain_gradients(
    dv: Tensor, h: Tensor, weight: Tensor, need_h: bool, need_weight: bool, need_bias: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    return (
        dv @ weight if need_h else None,
        dv.T @ h if need_weight else None,
        dv.sum(dim=0) if need_bias else None,
    )


def _fake_gradients(
    dv: Tensor, h: Tensor, weight: Tensor, need_h: bool, need_weight: bool, need_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        h.new_empty(h.shape) if need_h else dv.new_empty(0),
        weight.new_empty(weight.shape) if need_weight else dv.new_empty(0),
        dv.new_empty(dv.shape[1]) if need_bias else dv.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    h, weight, _, _, _, _, _, mean, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(h, weight, output[1])
    ctx.mean = mean


def _backward(ctx: Any, g: Tensor | None, g_grad: Tensor | None) -> tuple[Tensor | None, ...]:
    h, weight, grad = ctx.saved_tensors
    need_h, need_weight, need_bias, need_target = ctx.needs_input_grad[:4]
    if g is None and g_grad is None:
        return (None,) * 9
    dv = None
    derivative, scale = loss_derivatives(grad.dtype, grad.numel(), ctx.mean)
    if g is not None:
        # grad is a multiple of the residual, and a result as well as a saved tensor, so that every
        # higher derivative follows from this formula.
        factor = g * (derivative / scale)
        if g_grad is None and _may_overwrite(grad):
            dv = grad.detach()
            torch.ops.fastnode.scale_.default(dv, factor)
        else:
            dv = (grad * factor).to(grad.dtype)
    if g_grad is not None:
        part = g_grad * scale
        dv = part if dv is None else dv + part
    assert dv is not None
    wanted = (need_h, need_weight, need_bias)
    if torch.is_grad_enabled():
        gradients = _plain_gradients(dv, h, weight, *wanted)
    else:
        gradients = torch.ops.fastnode.linear_gradients.default(dv, h, weight, *wanted)
    found = (x if needed else None for x, needed in zip(gradients, wanted, strict=True))
    return (*found, dv if need_target else None, None, None, None, None, None)


def _may_overwrite(saved: Tensor) -> bool:
    """Whether no later backward pass needs a saved tensor (as in csrc/ops/flow_loss.cpp)."""
    if type(saved) is not Tensor or torch.is_grad_enabled():
        return False
    return not torch._C._autograd._get_current_graph_task_keep_graph()  # pyright: ignore


dispatch.define(
    "linear_flow_loss(Tensor h, Tensor weight, Tensor? bias, Tensor stand_in, Tensor z0, Tensor z1,"
    " Tensor coef, bool mean, bool with_grad) -> (Tensor loss, Tensor grad)",
    _forward,
    _fake,
    (_backward, _setup_context),
)
dispatch.define(
    "linear_gradients(Tensor dv, Tensor h, Tensor weight, bool need_h, bool need_weight,"
    " bool need_bias) -> (Tensor dh, Tensor dweight, Tensor dbias)",
    _gradients,
    _fake_gradients,
)
