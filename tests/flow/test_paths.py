"""Paths and training times: values, gradients, shapes, dtypes and bad input."""

import copy
import math
import pickle

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from fastnode.flow import (
    Concave,
    Convex,
    Linear,
    Path,
    Target,
    flow_loss,
    get_path,
    linear_flow_loss,
    sample_time,
)


def cubic() -> Path:
    return Path(lambda t: 1 - t**2, lambda t: t**3, lambda t: -2 * t, lambda t: 3 * t**2)


PATHS = [Linear(), Concave(), Convex(), cubic()]
SHAPES = [(1, 1), (3, 63), (2, 1023), (5,), (4, 2, 3, 3), (0, 7), (3, 0)]


def end_points(shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z0, z1 = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2))
    t = torch.rand(shape[0], dtype=torch.float64, generator=generator)
    return z0.to(dtype), z1.to(dtype), t


def expected(path, z0, z1, t):
    column = t.view(-1, *(1,) * (z0.dim() - 1))
    zt = path.alpha(column) * z0 + path.beta(column) * z1
    return zt, path.dalpha(column) * z0 + path.dbeta(column) * z1


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_state_and_velocity_are_those_of_the_formula(path, shape):
    z0, z1, t = end_points(shape)
    zt, target = path.interpolate(z0, z1, t)
    stored_zt, stored_ut = path.sample(z0, z1, t)
    want_zt, want_ut = expected(path, z0, z1, t)
    for got, want in [
        (zt, want_zt),
        (stored_zt, want_zt),
        (stored_ut, want_ut),
        (target.velocity(), want_ut),
    ]:
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
def test_derivatives_of_the_coefficients_are_derivatives(path):
    t = torch.linspace(0.05, 0.95, 9, dtype=torch.float64, requires_grad=True)
    rows = path.coefficients(t)
    for value, derivative in ((rows[0], rows[2]), (rows[1], rows[3])):
        (grad,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
        torch.testing.assert_close(grad, derivative)


@pytest.mark.parametrize("path", PATHS[:3], ids=lambda p: p.name)
def test_paths_begin_at_z0_and_end_at_z1(path):
    z0, z1, _ = end_points((4, 5), torch.float32)
    for t, want in ((torch.zeros(4), z0), (torch.ones(4), z1)):
        torch.testing.assert_close(path.interpolate(z0, z1, t)[0], want, rtol=0, atol=3e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
def test_low_precision_error_is_at_most_twice_torchs(dtype, path):
    z0, z1, t = end_points((16, 257), dtype)
    exact = expected(path, z0.double(), z1.double(), t.float().double())
    plain = expected(path, z0, z1, t.to(dtype))
    for ours, theirs, want in zip(path.sample(z0, z1, t.float()), plain, exact, strict=True):
        assert ours.dtype == dtype
        floor = torch.finfo(dtype).eps * want.abs().max()
        assert (ours - want).abs().max() <= 2 * (theirs - want).abs().max() + floor


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
@pytest.mark.parametrize("stored", [False, True], ids=["stand-in", "stored"])
def test_interpolate_gradients_are_exact_to_second_order(path, stored):
    z0, z1, t = end_points((3, 4))
    inputs = (
        z0.requires_grad_(),
        z1.requires_grad_(),
        (0.1 + 0.8 * t).requires_grad_(),
        torch.tensor(1.3, dtype=torch.float64, requires_grad=True),
    )

    def objective(z0, z1, t, w):
        if stored:
            zt, target = path.sample(z0, z1, t)
        else:
            zt, target = path.interpolate(z0, z1, t)
        return flow_loss(torch.sin(w * zt), target)

    assert gradcheck(objective, inputs)
    assert gradgradcheck(objective, inputs)
    assert gradcheck(lambda a, b, t: path.sample(a, b, t), inputs[:3])
    assert gradcheck(lambda a, b, t: path.interpolate(a, b, t)[1].velocity(), inputs[:3])


@pytest.mark.parametrize("needs", [(True, False), (False, True)], ids=["z0", "z1"])
@pytest.mark.parametrize("part", ["state", "target"])
def test_only_the_gradient_that_is_needed_is_made(needs, part):
    z0, z1, t = end_points((4, 33), torch.float32)
    z0.requires_grad_(needs[0])
    z1.requires_grad_(needs[1])
    path = Convex()
    zt, ut = path.sample(z0, z1, t)
    weights = torch.randn(4, 33)
    (zt if part == "state" else ut).mul(weights).sum().backward()
    coef = path.coefficients(t.float())
    row = (0 if part == "state" else 2) + (0 if needs[0] else 1)
    got, other = (z0, z1) if needs[0] else (z1, z0)
    torch.testing.assert_close(got.grad, coef[row][:, None] * weights)
    assert other.grad is None


def test_non_contiguous_end_points_give_the_same_result():
    z0, z1, t = end_points((6, 40), torch.float32)
    wide = torch.full((6, 80), torch.nan)
    wide[:, ::2] = z0
    offset = torch.full((241,), torch.nan)
    offset[1:] = z1.flatten()
    got = Linear().sample(wide[:, ::2], offset[1:].view(6, 40), t.float())
    want = Linear().sample(z0, z1, t.float())
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_batch_first_views_of_images_work_in_channels_last():
    z0, z1, t = end_points((2, 3, 4, 4), torch.float32)
    last = torch.channels_last
    got = Linear().interpolate(z0.to(memory_format=last), z1.to(memory_format=last), t.float())[0]
    torch.testing.assert_close(got, Linear().interpolate(z0, z1, t.float())[0])


def test_large_results_written_past_the_cache_are_the_same():
    z0, z1, t = end_points((3, 1_500_001), torch.float32)
    zt, ut = Concave().sample(z0, z1, t.float())
    want = expected(Concave(), z0, z1, t.float())
    torch.testing.assert_close(zt, want[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ut, want[1], rtol=1e-6, atol=1e-6)


def test_target_says_what_it_stands_for():
    z0, z1, t = end_points((4, 3), torch.float32)
    target = Linear().interpolate(z0, z1, t.float())[1]
    assert isinstance(target, Target) and target.shape == (4, 3)
    assert "shape=(4, 3)" in repr(target)


@pytest.mark.parametrize("changed", [0, 1])
@pytest.mark.parametrize("drawn", [True, False])
@pytest.mark.parametrize(
    "use",
    [
        lambda zt, target: flow_loss(zt, target),
        lambda zt, target: flow_loss(zt, target, reduction="none"),
        lambda zt, target: linear_flow_loss(zt, torch.eye(3), None, target),
        lambda zt, target: target.velocity(),
    ],
)
def test_target_refuses_end_points_changed_in_place(use, drawn, changed):
    z0, z1, t = end_points((4, 3), torch.float32)
    path = Linear()
    zt, target = path.draw(z0, z1)[1:] if drawn else path.interpolate(z0, z1, t.float())
    use(zt, target)
    (z0, z1)[changed].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an in-place operation"):
        use(zt, target)


def test_target_of_inference_tensors():
    with torch.inference_mode():
        z0, z1, t = (x.clone() for x in end_points((4, 3), torch.float32))
        zt, target = Linear().interpolate(z0, z1, t.float())
        assert flow_loss(zt, target) >= 0


def test_target_passes_a_boundary_of_torch_compile():
    z0, z1, t = end_points((4, 3), torch.float32)
    compiled = torch.compile(flow_loss, fullgraph=True, backend="aot_eager")
    zt, target = Linear().interpolate(z0, z1, t.float())
    torch.testing.assert_close(compiled(zt, target), flow_loss(zt, target))


def test_one_derivative_graph_is_walked_in_a_single_pass():
    z0, z1, t = end_points((4, 8), torch.float32)
    z0.requires_grad_(), z1.requires_grad_()
    zt, target = Linear().interpolate(z0, z1, t.float())
    if target.stand_in is None:
        pytest.skip("the extension is not built")
    assert target.stand_in.grad_fn is zt.grad_fn
    assert target.stand_in.untyped_storage().nbytes() == target.stand_in.element_size()


@pytest.mark.parametrize("path", PATHS[:3], ids=lambda p: p.name)
def test_paths_are_copied_by_name_and_pickle(path):
    assert type(get_path(path.name)) is type(path)
    assert get_path(path) is path
    assert type(copy.deepcopy(path)) is type(path)
    assert type(pickle.loads(pickle.dumps(path))) is type(path)


def test_vmap_and_func_grad_go_through_a_path():
    z0, z1, t = end_points((5, 4, 3))
    batched = torch.func.vmap(lambda a, b: Linear().interpolate(a, b, t[:4])[0])(z0, z1)
    torch.testing.assert_close(batched[2], Linear().interpolate(z0[2], z1[2], t[:4])[0])

    def loss(z0):
        zt, target = Concave().interpolate(z0, z1[0], t[:4])
        return flow_loss(zt, target)

    z = z0[0].clone().requires_grad_()
    loss(z).backward()
    torch.testing.assert_close(torch.func.grad(loss)(z0[0]), z.grad)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
def test_a_training_step_compiles_without_graph_breaks(path):
    z0, z1, t = end_points((6, 10), torch.float32)

    def step(z0, z1, t):
        zt, target = path.interpolate(z0, z1, t)
        return flow_loss(torch.tanh(zt), target)

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        a, b = z0.clone().requires_grad_(), z1.clone().requires_grad_()
        loss = function(a, b, t.float())
        loss.backward()
        results.append((loss.detach(), a.grad, b.grad))
    for got, want in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, want)


def test_autocast_brings_end_points_to_the_widest_type():
    z0, z1, t = end_points((4, 3), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        zt, target = Linear().interpolate(z0.bfloat16(), z1, t.float())
        assert zt.dtype == torch.float32
        assert flow_loss(zt.bfloat16(), target).dtype == torch.float32


@pytest.mark.parametrize(
    "change, error, message",
    [
        (dict(z1=torch.zeros(4, 4)), ValueError, r"one shape.*\(4, 3\) and \(4, 4\)"),
        (dict(t=torch.zeros(5)), ValueError, r"t must have shape \[4\].*\(5,\)"),
        (dict(t=torch.zeros(4, 1)), ValueError, r"shape \[B\], got \(4, 1\)"),
        (dict(t=torch.zeros(4, dtype=torch.int64)), TypeError, "floating, got torch.int64"),
        (dict(t=0.5), TypeError, "t must be a tensor.*float"),
        (dict(t=torch.tensor([0.0, 0.5, 1.5, 1.0])), ValueError, "lie in .0, 1.*0 to 1.5"),
        (dict(t=torch.tensor([0.0, 0.5, torch.nan, 1.0])), ValueError, r"lie in .0, 1"),
        (dict(z0=torch.zeros(4, 3, dtype=torch.int64)), TypeError, "z0 must be float32"),
        (dict(z1=torch.zeros(4, 3, dtype=torch.float64)), TypeError, "share a dtype"),
        (dict(z1=torch.zeros(4, 3, device="meta")), ValueError, "share a device, got cpu, meta"),
        (dict(z0=[1.0]), TypeError, "z0 must be a tensor, got list"),
        (dict(z0=torch.tensor(1.0), z1=torch.tensor(1.0)), ValueError, "one shape"),
    ],
)
@pytest.mark.parametrize("path", [Linear(), cubic()], ids=lambda p: p.name)
def test_bad_arguments_are_named(path, change, error, message):
    arguments = dict(z0=torch.zeros(4, 3), z1=torch.zeros(4, 3), t=torch.rand(4)) | change
    for method in (path.interpolate, path.sample):
        with pytest.raises(error, match=message):
            method(**arguments)


def test_times_outside_the_unit_interval_are_taken_on_request():
    z0, z1, _ = end_points((2, 3))
    t = torch.tensor([-0.5, 1.5], dtype=torch.float64)
    zt, _ = Linear().interpolate(z0, z1, t, extrapolate=True)
    torch.testing.assert_close(zt, (1 - t)[:, None] * z0 + t[:, None] * z1)


def test_unknown_paths_are_refused():
    with pytest.raises(ValueError, match="unknown path 'round', expected one of concave"):
        get_path("round")
    with pytest.raises(TypeError, match="name or a Path, got int"):
        get_path(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="dbeta must be a function of t, got float"):
        Path(torch.sin, torch.cos, torch.cos, 1.0)  # pyright: ignore[reportArgumentType]


def test_training_times_are_uniform_with_a_share_of_exact_zeros():
    generator = torch.Generator().manual_seed(0)
    t = sample_time(100_000, 0.1, generator=generator)
    assert t.shape == (100_000,) and t.min() == 0 and t.max() < 1
    zeros = (t == 0).double().mean().item()
    assert abs(zeros - 0.1) < 4 * math.sqrt(0.1 * 0.9 / 1e5)
    assert abs(t[t > 0].mean().item() - 0.5) < 4 / math.sqrt(12 * 9e4)
    assert torch.equal(t, sample_time(100_000, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("probability, share", [(0.0, 0.0), (1.0, 1.0)])
def test_zero_probability_reaches_its_ends(probability, share):
    assert (sample_time(1000, probability) == 0).double().mean() == share


def test_bad_time_samples_are_refused():
    with pytest.raises(ValueError, match="batch must be at least 0, got -1"):
        sample_time(-1)
    with pytest.raises(ValueError, match="zero_probability .* got 1.5"):
        sample_time(3, 1.5)
    with pytest.raises(TypeError, match="dtype must be floating, got torch.int32"):
        sample_time(3, dtype=torch.int32)


def test_drawing_is_sampling_times_and_interpolating_there():
    z0, z1 = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    path = Path(torch.cos, torch.sin, lambda t: -torch.sin(t), torch.cos)
    for each, dtype in (
        (Linear(), torch.float64),
        (Convex(), torch.bfloat16),
        (path, torch.float32),
    ):
        a, b = z0.to(dtype), z1.to(dtype)
        t, zt, target = each.draw(a, b, 0.5, generator=torch.Generator().manual_seed(1))
        wide = torch.promote_types(dtype, torch.float32)
        same = torch.Generator().manual_seed(1)
        assert torch.equal(t, sample_time(5, 0.5, dtype=wide, generator=same))
        want, velocity = each.interpolate(a, b, t)
        assert torch.equal(zt, want) and torch.equal(target.velocity(), velocity.velocity())


def test_bad_draws_are_named():
    z = torch.randn(5, 3)
    with pytest.raises(ValueError, match="zero_probability must lie in"):
        Linear().draw(z, z, 1.5)
    with pytest.raises(ValueError, match="z0 and z1 must have one shape"):
        Linear().draw(z, z[:, :2])
    with pytest.raises(TypeError, match="z0 must be a tensor"):
        Linear().draw([1.0], z)
