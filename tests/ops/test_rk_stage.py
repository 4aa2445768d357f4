from __future__ import annotations

import pytest
import torch

from fastnode import extension
from fastnode.ops.rk_stage import rk_stage, rk_stage_reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(1,), (63,), (1023,), (3, 5, 7), (40000,), (0,), (0, 4), ()]
compiled = pytest.mark.skipif(not extension.AVAILABLE, reason="C++ extension not built")


def make(shape, dtype=torch.float64, terms=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tensors = [
        torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(terms + 1)
    ]
    y, *k = (x.to(dtype) for x in tensors)
    return y, k, [0.3 * (-1) ** j / (j + 1) for j in range(terms)]


def exact(y, k, c):
    return y.double() + sum(w * x.double() for w, x in zip(c, k, strict=True))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_is_at_most_twice_that_of_plain_torch(shape, dtype):
    y, k, c = make(shape, dtype)
    plain = y
    for weight, derivative in zip(c, k, strict=True):
        plain = plain + weight * derivative
    result = rk_stage(y, k, c)
    assert result.dtype == dtype and result.shape == y.shape
    if y.numel():
        error = (result.double() - exact(y, k, c)).abs().max()
        allowed = 2 * (plain.double() - exact(y, k, c)).abs().max()
        assert error <= allowed + torch.finfo(dtype).eps * y.double().abs().max()


@pytest.mark.parametrize("terms", [0, 1, 2, 13, 32])
def test_any_number_of_stages(terms):
    y, k, c = make((100,), terms=terms)
    torch.testing.assert_close(rk_stage(y, k, c), exact(y, k, c))


@pytest.mark.parametrize("implementation", [rk_stage, rk_stage_reference])
@pytest.mark.parametrize("terms", [2, 4, 7, 13])
def test_small_terms_are_summed_before_y_is_added(implementation, terms):
    y, k, c = make((1000,), torch.float32, terms)
    y = 1 + y.abs() / 8
    k = [x / 100 for x in k]
    error = (implementation(y, k, c).double() - exact(y, k, c)).abs().max()
    # Rounded once, to the nearest number of y's size.
    assert error <= 0.501 * torch.finfo(torch.float32).eps * 2


def test_views_with_offset_and_strides_are_read_right():
    buffer = torch.arange(3000, dtype=torch.float32)
    y, k = buffer[1:1024], [buffer[3:1026], buffer[7:2053:2]]
    torch.testing.assert_close(rk_stage(y, k, [0.5, -2.0]), y + 0.5 * k[0] - 2 * k[1])
    matrix = torch.randn(33, 17).t()
    torch.testing.assert_close(rk_stage(matrix, [matrix], [2.0]), 3 * matrix)


def test_result_is_new_memory_and_inputs_stay():
    y, k, c = make((10,), terms=0)
    before = y.clone()
    result = rk_stage(y, k, c)
    result.fill_(torch.nan)
    assert extension.AVAILABLE is False or torch.equal(y, before)


def test_not_finite_numbers_pass_through():
    y = torch.tensor([1.0, torch.inf, torch.nan, 2.0])
    k = [torch.tensor([torch.nan, 1.0, 1.0, -torch.inf])]
    result = rk_stage(y, k, [1.0])
    assert result.isnan().tolist() == [True, False, True, False]
    assert result[1] == torch.inf and result[3] == -torch.inf


def test_every_16_bit_float_survives_unchanged():
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.bfloat16, torch.float16):
        values = bits.view(dtype)
        finite = values[~values.isnan()]
        assert torch.equal(rk_stage(finite, [], []).view(torch.int16), finite.view(torch.int16))
        assert rk_stage(values[values.isnan()], [], []).isnan().all()


def test_first_and_second_derivatives():
    y, k, c = make((2, 3), terms=3)
    inputs = [x.requires_grad_() for x in (y, *k)]
    assert torch.autograd.gradcheck(lambda y, *k: rk_stage(y, k, c), inputs)
    squared = lambda y, *k: rk_stage(y, k, c).square()  # noqa: E731
    assert torch.autograd.gradgradcheck(squared, inputs)


def test_stages_that_need_no_gradient_get_none():
    y, k, c = make((4,), terms=2)
    k[1].requires_grad_()
    (gradient,) = torch.autograd.grad(rk_stage(y, k, c).sum(), [k[1]])
    torch.testing.assert_close(gradient, torch.full((4,), c[1], dtype=torch.float64))


def test_weights_given_as_tensors_get_gradients():
    y, k, c = make((4,), terms=2)
    weights = [torch.tensor(w, dtype=torch.float64, requires_grad=True) for w in c]
    gradients = torch.autograd.grad(rk_stage(y, k, weights).sum(), weights)
    torch.testing.assert_close(torch.stack(gradients), torch.stack([x.sum() for x in k]))


def test_complex_states():
    y, k, c = (torch.randn(5, dtype=torch.complex64) for _ in range(3)), None, [0.5, 0.25]
    y, *k = y
    torch.testing.assert_close(rk_stage(y, k, c), y + 0.5 * k[0] + 0.25 * k[1])


def test_inside_torch_func_transforms():
    y, k, c = make((3, 4), terms=2)
    batched = torch.func.vmap(lambda y, a, b: rk_stage(y, [a, b], c))(y, *k)
    torch.testing.assert_close(batched, exact(y, k, c))
    jacobian = torch.func.jacrev(lambda y: rk_stage(y, k, c))(y).reshape(12, 12)
    torch.testing.assert_close(jacobian, torch.eye(12, dtype=torch.float64))


@compiled
def test_opcheck():
    y, k, c = make((3, 5), torch.float32, terms=2)
    for requires_grad in (False, True):
        inputs = [x.clone().requires_grad_(requires_grad) for x in (y, *k)]
        torch.library.opcheck(torch.ops.fastnode.rk_stage.default, (inputs[0], inputs[1:], c))


def test_compiles_without_graph_breaks():
    y, k, c = make((3, 5), torch.float32, terms=2)
    y.requires_grad_()
    function = lambda y, a, b: rk_stage(y, [a, b], c)  # noqa: E731
    result = torch.compile(function, fullgraph=True, backend="aot_eager")(y, *k)
    torch.testing.assert_close(result, rk_stage_reference(y, k, c))
    (gradient,) = torch.autograd.grad(result.sum(), y)
    assert torch.equal(gradient, torch.ones_like(y))


@pytest.mark.parametrize("implementation", [rk_stage, rk_stage_reference])
@pytest.mark.parametrize(
    ("k", "c", "kind", "words"),
    [
        ([torch.zeros(4)], [1.0], ValueError, "each of k"),
        ([torch.zeros(3)], [1.0, 2.0], ValueError, "k and c"),
        ([torch.zeros(3, dtype=torch.float64)], [1.0], TypeError, "each of k"),
    ],
)
def test_bad_input_is_named(implementation, k, c, kind, words):
    with pytest.raises(kind, match=words):
        implementation(torch.zeros(3), k, c)
