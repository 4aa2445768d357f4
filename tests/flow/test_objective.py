"""The flow loss: value, reductions, gradients, precision and bad input."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from fastnode.flow import Concave, Linear, flow_loss


def batch(shape=(6, 37), dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    z0, z1, v = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(3))
    t = torch.rand(shape[0], dtype=torch.float64, generator=generator)
    return z0.to(dtype), z1.to(dtype), v.to(dtype), t


@pytest.mark.parametrize("shape", [(1, 1), (3, 63), (2, 1023), (5,), (4, 2, 3, 3)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_loss_is_the_squared_distance_to_the_stored_velocity(shape, reduction):
    z0, z1, v, t = batch(shape)
    _, target = Concave().interpolate(z0, z1, t)
    squared = (v - target.velocity()) ** 2
    want = {"mean": squared.mean(), "sum": squared.sum(), "none": squared}[reduction]
    torch.testing.assert_close(flow_loss(v, target, reduction), want)
    torch.testing.assert_close(flow_loss(v, target.velocity(), reduction), want)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients_are_exact_to_second_order(reduction):
    z0, z1, v, t = batch((3, 4))
    inputs = tuple(x.requires_grad_() for x in (v, z0, z1, 0.1 + 0.8 * t))

    def objective(v, z0, z1, t):
        _, target = Concave().interpolate(z0, z1, t)
        return flow_loss(v, target, reduction)

    assert gradcheck(objective, inputs)
    assert gradgradcheck(objective, inputs)


def test_third_derivatives_follow_from_the_same_node():
    z0, z1, v, t = batch((2, 3))
    v.requires_grad_()
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    _, target = Linear().interpolate(z0, z1, t)
    loss = flow_loss(v * scale**2, target)
    plain = (v * scale**2 - target.velocity()).square().mean()
    for _ in range(3):
        (loss,) = torch.autograd.grad(loss, scale, create_graph=True)
        (plain,) = torch.autograd.grad(plain, scale, create_graph=True)
        torch.testing.assert_close(loss, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision_error_is_at_most_twice_torchs(dtype):
    z0, z1, v, t = batch((16, 1023), dtype)
    t = t.to(dtype)
    exact_u = z1.double() - z0.double()
    exact = ((v.double() - exact_u) ** 2).mean()
    plain = ((v - (z1 - z0)) ** 2).mean()
    v.requires_grad_()
    ours = flow_loss(v, Linear().interpolate(z0, z1, t)[1])
    assert ours.dtype == torch.float32
    floor = torch.finfo(dtype).eps * exact
    assert abs(ours.item() - exact) <= 2 * abs(plain.item() - exact) + floor
    ours.backward()
    want = 2 / v.numel() * (v.detach().double() - exact_u)
    theirs = (2 / v.numel() * (v.detach() - (z1 - z0))).double()
    floor = torch.finfo(dtype).eps * want.abs().max() + torch.finfo(dtype).tiny
    assert (v.grad.double() - want).abs().max() <= 2 * (theirs - want).abs().max() + floor


def test_float16_gradients_survive_loss_scaling():
    z0, z1, _, t = batch((64, 4096), torch.float16)
    v = (z1 - z0 + 1e-3).requires_grad_()
    scale = 2.0**16
    (flow_loss(v, Linear().interpolate(z0, z1, t.float())[1]) * scale).backward()
    want = scale * 2 / v.numel() * (v.detach().double() - (z1.double() - z0.double()))
    assert (v.grad.double() - want).norm() < 1e-2 * want.norm()


@pytest.mark.parametrize("scale", [1.0, 0.25], ids=["one", "scaled"])
def test_flow_loss_backward_repeats_with_retain_graph(scale):
    z0, z1, v, t = batch(dtype=torch.float32)
    v.requires_grad_(), z0.requires_grad_()
    loss = flow_loss(v, Linear().interpolate(z0, z1, t.float())[1]) * scale
    first = None
    for count in range(1, 4):
        loss.backward(retain_graph=True)
        first = v.grad.clone() if first is None else first
        torch.testing.assert_close(v.grad, count * first)
    loss.backward()
    torch.testing.assert_close(v.grad, 4 * first)


def test_result_repeats_bit_for_bit_for_any_number_of_threads():
    z0, z1, v, t = batch((37, 4099), torch.float32)
    target = Linear().interpolate(z0, z1, t.float())[1]
    threads = torch.get_num_threads()
    try:
        losses = []
        for count in (1, 2, 1, 2):
            torch.set_num_threads(count)
            losses.append(flow_loss(v, target))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(loss, losses[0]) for loss in losses)


def test_no_gradient_is_made_where_none_is_needed():
    z0, z1, v, t = batch(dtype=torch.float32)
    target = Linear().interpolate(z0, z1, t.float())[1]
    assert not flow_loss(v, target).requires_grad
    with torch.no_grad():
        assert not flow_loss(v.requires_grad_(), target).requires_grad


def test_an_empty_batch_gives_what_torch_gives():
    z0, z1, v, t = batch((0, 5), torch.float32)
    v.requires_grad_()
    target = Linear().interpolate(z0, z1, t.float())[1]
    assert math.isnan(flow_loss(v, target).item())
    loss = flow_loss(v, target, "sum")
    loss.backward()
    assert loss.item() == 0 and v.grad.shape == (0, 5)


def test_large_gradients_written_past_the_cache_are_the_same():
    z0, z1, v, t = batch((3, 1_000_001), torch.float32)
    v.requires_grad_()
    flow_loss(v, Linear().interpolate(z0, z1, t.float())[1], "sum").backward()
    torch.testing.assert_close(v.grad, 2 * (v.detach() - (z1 - z0)), rtol=1e-6, atol=1e-5)


def test_infinite_and_missing_values_come_through():
    z0, z1, v, t = batch((3, 70), torch.float32)
    v[1, 3], v[2, 5] = torch.inf, torch.nan
    target = Linear().interpolate(z0, z1, t.float())[1]
    assert math.isnan(flow_loss(v, target).item())
    assert math.isinf(flow_loss(v[:2], Linear().interpolate(z0[:2], z1[:2], t[:2])[1]).item())


def test_bad_arguments_are_named():
    z0, z1, v, t = batch(dtype=torch.float32)
    target = Linear().interpolate(z0, z1, t.float())[1]
    with pytest.raises(ValueError, match="reduction must be one of mean, sum, none, got 'max'"):
        flow_loss(v, target, "max")
    with pytest.raises(ValueError, match=r"target's shape \(6, 37\), got \(6, 36\)"):
        flow_loss(v[:, 1:], target)
    with pytest.raises(TypeError, match="dtype torch.float32, got torch.float64"):
        flow_loss(v.double(), target)
    with pytest.raises(ValueError, match="device cpu, got meta"):
        flow_loss(v.to("meta"), target)
    with pytest.raises(TypeError, match="v must be a tensor, got float"):
        flow_loss(1.0, target)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="target must be a Target or a Tensor, got int"):
        flow_loss(v, 3)  # pyright: ignore[reportArgumentType]
