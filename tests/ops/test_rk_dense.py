from __future__ import annotations

import pytest
import torch

from fastnode import extension
from fastnode.ops.rk_dense import rk_dense, rk_dense_reference
from fastnode.ops.rk_stage import rk_stage

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(1,), (63,), (1023,), (3, 5, 7), (40000,), (0,), (0, 4), ()]
compiled = pytest.mark.skipif(not extension.AVAILABLE, reason="C++ extension not built")


def make(shape, dtype=torch.float64, terms=6, times=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tensors = [
        torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(terms + 1)
    ]
    y, *k = (x.to(dtype) for x in tensors)
    c = torch.randn(times, terms, generator=generator, dtype=torch.float64)
    return y, k, c.tolist()


def exact(y, k, c):
    rows = [y.double() + sum(w * x.double() for w, x in zip(r, k, strict=True)) for r in c]
    return torch.stack(rows)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_is_at_most_twice_that_of_plain_torch(shape, dtype):
    y, k, c = make(shape, dtype)
    plain = y.expand(5, *y.shape)
    column = (5,) + (1,) * y.dim()
    for j, derivative in enumerate(k):
        plain = plain + torch.tensor([row[j] for row in c]).to(dtype).view(column) * derivative
    result = rk_dense(y, k, c)
    assert result.dtype == dtype and result.shape == (5, *y.shape)
    if y.numel():
        error = (result.double() - exact(y, k, c)).abs().max()
        allowed = 2 * (plain.double() - exact(y, k, c)).abs().max()
        assert error <= allowed + torch.finfo(dtype).eps * y.double().abs().max()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_row_is_bit_for_bit_a_stage(shape, dtype):
    y, k, c = make(shape, dtype, terms=7, times=3)
    for result, row in zip(rk_dense(y, k, c), c, strict=True):
        assert torch.equal(result, rk_stage(y, k, row))


@pytest.mark.parametrize("times", [0, 1, 200])
@pytest.mark.parametrize("terms", [0, 1, 2, 13, 32])
def test_any_number_of_stages_and_times(terms, times):
    y, k, c = make((100,), terms=terms, times=times)
    result = rk_dense(y, k, c)
    assert result.shape == (times, 100)
    if times:
        torch.testing.assert_close(result, exact(y, k, c))


def test_weights_as_a_matrix_give_the_same():
    y, k, c = make((7, 9), torch.float32)
    matrix = torch.tensor(c, dtype=torch.float64)
    assert torch.equal(rk_dense(y, k, matrix), rk_dense(y, k, c))
    assert torch.equal(rk_dense(y, k, matrix.t().contiguous().t()), rk_dense(y, k, c))
    torch.testing.assert_close(rk_dense_reference(y, k, matrix), rk_dense(y, k, c))


def test_views_with_offset_and_strides_are_read_right():
    buffer = torch.arange(3000, dtype=torch.float32)
    y, k = buffer[1:1024], [buffer[3:1026], buffer[7:2053:2]]
    wanted = torch.stack([y + 0.5 * k[0] - 2 * k[1], y + k[0]])
    torch.testing.assert_close(rk_dense(y, k, [[0.5, -2.0], [1.0, 0.0]]), wanted)
    matrix = torch.randn(33, 17).t()
    torch.testing.assert_close(rk_dense(matrix, [matrix], [[2.0]]), 3 * matrix[None])


def test_result_does_not_depend_on_the_number_of_threads():
    y, k, c = make((40001,), torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(rk_dense(y, k, c))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[1], results[0]) and torch.equal(results[2], results[0])


def test_not_finite_numbers_pass_through():
    y = torch.tensor([1.0, torch.inf, torch.nan, 2.0])
    k = [torch.tensor([torch.nan, 1.0, 1.0, -torch.inf])]
    for result in rk_dense(y, k, [[1.0], [2.0]]):
        assert result.isnan().tolist() == [True, False, True, False]
        assert result[1] == torch.inf and result[3] == -torch.inf


def test_first_and_second_derivatives():
    y, k, c = make((2, 3), terms=3, times=2)
    matrix = torch.tensor(c, dtype=torch.float64)
    function = lambda y, *rest: rk_dense(y, rest[:-1], rest[-1])  # noqa: E731
    squared = lambda *inputs: function(*inputs).square()  # noqa: E731
    for weights in (matrix, matrix.clone().requires_grad_()):
        inputs = [x.requires_grad_() for x in (y, *k)] + [weights]
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(squared, inputs)


def test_stages_that_need_no_gradient_get_none():
    y, k, c = make((4,), terms=2, times=3)
    k[1].requires_grad_()
    (gradient,) = torch.autograd.grad(rk_dense(y, k, c).sum(), [k[1]])
    torch.testing.assert_close(
        gradient, torch.full((4,), sum(row[1] for row in c), dtype=torch.float64)
    )


def test_gradients_in_16_bits_have_the_inputs_dtype():
    y, k, c = make((8,), torch.bfloat16, terms=2)
    inputs = [x.requires_grad_() for x in (y, k[0])]
    gradients = torch.autograd.grad(rk_dense(y, k, c).sum(), inputs)
    assert [g.dtype for g in gradients] == [torch.bfloat16] * 2
    torch.testing.assert_close(
        gradients[1], torch.full((8,), sum(row[0] for row in c), dtype=torch.bfloat16)
    )


@pytest.mark.parametrize("shape", [(0, 4), ()], ids=str)
def test_gradients_of_states_without_dimension_or_element(shape):
    y, k, c = make(shape, terms=2)
    inputs = [x.requires_grad_() for x in (y, *k)]
    gradients = torch.autograd.grad(rk_dense(y, k, c).sum(), inputs)
    assert [g.shape for g in gradients] == [torch.Size(shape)] * 3


def test_weights_given_as_tensors_get_gradients():
    y, k, c = make((4,), terms=2, times=1)
    weights = [torch.tensor(w, dtype=torch.float64, requires_grad=True) for w in c[0]]
    gradients = torch.autograd.grad(rk_dense(y, k, [weights]).sum(), weights)
    torch.testing.assert_close(torch.stack(gradients), torch.stack([x.sum() for x in k]))


def test_complex_states():
    y, *k = (torch.randn(5, dtype=torch.complex64) for _ in range(3))
    wanted = torch.stack([y + 0.5 * k[0] + 0.25 * k[1]])
    torch.testing.assert_close(rk_dense(y, k, [[0.5, 0.25]]), wanted)


def test_inside_torch_func_transforms():
    y, k, c = make((3, 4), terms=2, times=2)
    batched = torch.func.vmap(lambda y, a, b: rk_dense(y, [a, b], c))(y, *k)
    torch.testing.assert_close(batched, exact(y, k, c).transpose(0, 1))
    jacobian = torch.func.jacrev(lambda y: rk_dense(y, k, c))(y).reshape(2, 12, 12)
    torch.testing.assert_close(jacobian, torch.eye(12, dtype=torch.float64).expand(2, 12, 12))


@compiled
def test_opcheck():
    y, k, c = make((3, 5), torch.float32, terms=2)
    matrix = torch.tensor(c, dtype=torch.float64)
    for requires_grad in (False, True):
        inputs = [x.clone().requires_grad_(requires_grad) for x in (y, *k)]
        torch.library.opcheck(torch.ops.fastnode.rk_dense.default, (inputs[0], inputs[1:], matrix))


def test_compiles_without_graph_breaks():
    y, k, c = make((3, 5), torch.float32, terms=2)
    y.requires_grad_()
    k[1].requires_grad_()
    function = lambda y, a, b: rk_dense(y, [a, b], c)  # noqa: E731
    result = torch.compile(function, fullgraph=True, backend="aot_eager")(y, *k)
    plain = rk_dense_reference(y, k, c)
    torch.testing.assert_close(result, plain)
    for ours, theirs in zip(
        torch.autograd.grad(result.square().sum(), (y, k[1])),
        torch.autograd.grad(plain.square().sum(), (y, k[1])),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("implementation", [rk_dense, rk_dense_reference])
@pytest.mark.parametrize(
    ("k", "c", "kind", "words"),
    [
        ([torch.zeros(4)], [[1.0]], ValueError, "each of k"),
        ([torch.zeros(4)], [], ValueError, "each of k"),
        ([torch.zeros(3)], [[1.0], [1.0, 2.0]], ValueError, "k and each row of c"),
        ([torch.zeros(3)], torch.zeros(2, 2, dtype=torch.float64), ValueError, "k and c"),
        ([torch.zeros(3)], torch.zeros(1, dtype=torch.float64), ValueError, "c must be a matrix"),
        ([torch.zeros(3)], torch.zeros(1, 1), TypeError, "c must be float64"),
        ([torch.zeros(3, dtype=torch.float64)], [[1.0]], TypeError, "each of k"),
    ],
)
def test_bad_input_is_named(implementation, k, c, kind, words):
    with pytest.raises(kind, match=words):
        implementation(torch.zeros(3), k, c)
