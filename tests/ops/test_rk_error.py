from __future__ import annotations

import pytest
import torch

from fastnode import extension
from fastnode.ops.rk_error import rk_error, rk_error_reference, scaled_error

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(1,), (63,), (1023,), (3, 5, 7), (5, 20000), (70000,)]
compiled = pytest.mark.skipif(not extension.AVAILABLE, reason="C++ extension not built")
RTOL, ATOL = 1e-2, 1e-3


def make(shape, dtype=torch.float64, terms=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tensors = [
        torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(terms + 2)
    ]
    y0, y1, *k = (x.to(dtype) for x in tensors)
    return y0, y1, k, [0.003 * (-1) ** j / (j + 1) for j in range(terms)]


def exact(y0, y1, k, c, per_sample=False):
    wide = (y0.double(), y1.double(), [x.double() for x in k])
    return rk_error_reference(*wide, c, RTOL, ATOL, per_sample)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_the_reference_in_float64(shape, dtype, per_sample):
    inputs = make(shape, dtype)
    result = rk_error(*inputs, RTOL, ATOL, per_sample)
    wanted = exact(*inputs, per_sample)
    assert result.shape == wanted.shape
    assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    rtol = 1e-12 if dtype == torch.float64 else 3e-6
    torch.testing.assert_close(result.double(), wanted, rtol=rtol, atol=rtol * float(wanted.max()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_is_at_most_twice_that_of_plain_torch(dtype):
    y0, y1, k, c = make((1023,), dtype)
    error = sum(w * x for w, x in zip(c, k, strict=True))
    plain = (error / (ATOL + RTOL * torch.maximum(y0.abs(), y1.abs()))).square().mean().sqrt()
    wanted = exact(y0, y1, k, c)
    ours = (rk_error(y0, y1, k, c, RTOL, ATOL).double() - wanted).abs()
    room = torch.finfo(torch.promote_types(dtype, torch.float32)).eps * wanted
    assert ours <= 2 * (plain.double() - wanted).abs() + room


def test_result_does_not_depend_on_the_number_of_threads():
    inputs = make((300, 700), torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append((rk_error(*inputs, RTOL, ATOL), rk_error(*inputs, RTOL, ATOL, True)))
    finally:
        torch.set_num_threads(threads)
    for joint, single in results[1:]:
        assert torch.equal(joint, results[0][0]) and torch.equal(single, results[0][1])


@pytest.mark.parametrize("implementation", [rk_error, rk_error_reference])
def test_empty_states_have_no_error(implementation):
    y0, y1, k, c = make((0, 4))
    assert implementation(y0, y1, k, c, RTOL, ATOL) == 0
    assert implementation(y0, y1, k, c, RTOL, ATOL, True).shape == (0,)
    y0, y1, k, c = make((3, 0))
    assert torch.equal(
        implementation(y0, y1, k, c, RTOL, ATOL, True), torch.zeros(3, dtype=torch.float64)
    )


@pytest.mark.parametrize("place", ["y0", "y1", "k"])
def test_nan_anywhere_makes_the_norm_nan(place):
    y0, y1, k, c = make((100,), torch.float32)
    {"y0": y0, "y1": y1, "k": k[2]}[place][17] = torch.nan
    assert rk_error(y0, y1, k, c, RTOL, ATOL).isnan()


def test_tolerances_of_each_element():
    y0, y1, k, c = make((4, 5))
    rtol = torch.rand(5, dtype=torch.float64) + 0.01
    wanted = scaled_error(y0, y1, k, c, rtol, ATOL).square().mean().sqrt()
    torch.testing.assert_close(rk_error(y0, y1, k, c, rtol, ATOL), wanted)


@pytest.mark.parametrize("per_sample", [False, True])
def test_first_and_second_derivatives(per_sample):
    y0, y1, k, c = make((2, 3), terms=2)
    inputs = [x.requires_grad_() for x in (y0, y1, *k)]
    function = lambda y0, y1, *k: rk_error(y0, y1, k, c, 0.1, 0.05, per_sample)  # noqa: E731
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_in_one_pass_are_those_that_have_derivatives(dtype):
    y0, y1, k, c = make((5, 4000), dtype)
    # Of one size, zero, and transposed in memory.
    y1[0], y1[1], y0[2], y1[2] = y0[0], -y0[1], 0, 0
    k[1] = k[1].t().contiguous().t()
    inputs = [x.requires_grad_() for x in (y0, y1, *k)]
    norm = rk_error(inputs[0], inputs[1], inputs[2:], c, RTOL, ATOL)
    wanted = torch.autograd.grad(3 * norm, inputs, create_graph=True)
    found = torch.autograd.grad(3 * norm, inputs, retain_graph=True)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-4, atol=1e-12)
    upstream = torch.tensor([1.0, 2.0], dtype=norm.dtype)
    both = torch.autograd.grad(norm, inputs, upstream, is_grads_batched=True)
    for a, b in zip(both, found, strict=True):
        torch.testing.assert_close(a[1], b * (2 / 3), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("implementation", [rk_error, rk_error_reference])
def test_gradient_of_a_vanishing_error_is_zero(implementation):
    y0, y1, k, c = make((4,), terms=1)
    k = [torch.zeros_like(y0, requires_grad=True)]
    y0.requires_grad_()
    for gradient in torch.autograd.grad(implementation(y0, y1, k, c, RTOL, ATOL), (y0, *k)):
        assert torch.equal(gradient, torch.zeros(4, dtype=torch.float64))


def test_gradients_in_16_bits_have_the_inputs_dtype():
    y0, y1, k, c = make((8,), torch.bfloat16, terms=2)
    k[0].requires_grad_()
    y1.requires_grad_()
    gradients = torch.autograd.grad(rk_error(y0, y1, k, c, RTOL, ATOL), (y1, k[0]))
    assert [g.dtype for g in gradients] == [torch.bfloat16] * 2


def test_inside_torch_func_transforms():
    y0, y1, k, c = make((3, 4), terms=2)
    function = lambda y0, y1, a, b: rk_error(y0, y1, [a, b], c, RTOL, ATOL)  # noqa: E731
    torch.testing.assert_close(
        torch.func.vmap(function)(y0, y1, *k), rk_error(y0, y1, k, c, RTOL, ATOL, True)
    )


@compiled
@pytest.mark.parametrize("per_sample", [False, True])
def test_opcheck(per_sample):
    y0, y1, k, c = make((3, 5), torch.float32, terms=2)
    for requires_grad in (False, True):
        a, b, *rest = (x.clone().requires_grad_(requires_grad) for x in (y0, y1, *k))
        arguments = (a, b, rest, c, RTOL, ATOL, per_sample)
        torch.library.opcheck(torch.ops.fastnode.rk_error.default, arguments)


def test_compiles_without_graph_breaks():
    y0, y1, k, c = make((3, 5), torch.float32, terms=2)
    y1.requires_grad_()
    function = lambda y0, y1, a, b: rk_error(y0, y1, [a, b], c, RTOL, ATOL)  # noqa: E731
    result = torch.compile(function, fullgraph=True, backend="aot_eager")(y0, y1, *k)
    plain = rk_error_reference(y0, y1, k, c, RTOL, ATOL)
    torch.testing.assert_close(result, plain)
    torch.testing.assert_close(torch.autograd.grad(result, y1), torch.autograd.grad(plain, y1))


@pytest.mark.parametrize("implementation", [rk_error, rk_error_reference])
def test_bad_input_is_named(implementation):
    x = torch.zeros(3)
    with pytest.raises(ValueError, match="y1"):
        implementation(x, torch.zeros(4), [x], [1.0], RTOL, ATOL)
    with pytest.raises(TypeError, match="each of k"):
        implementation(x, x, [x.double()], [1.0], RTOL, ATOL)
    with pytest.raises(ValueError, match="per_sample"):
        implementation(x[0], x[0], [x[0]], [1.0], RTOL, ATOL, True)
