from __future__ import annotations

import pytest
import torch

from fastnode import extension
from fastnode.ops.rk_adjoint import rk_adjoint, rk_adjoint_reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(1,), (63,), (1023,), (3, 5, 7), (40000,), (0,), (0, 4), ()]
compiled = pytest.mark.skipif(not extension.AVAILABLE, reason="C++ extension not built")


def make(shape, dtype=torch.float64, terms=6):
    generator = torch.Generator().manual_seed(0)
    x = [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(terms)
    ]
    return x, [0.3 * (-1) ** j / (j + 1) for j in range(terms)]


def exact(x, c):
    return sum(w * each.double() for w, each in zip(c, x, strict=True))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_is_at_most_twice_that_of_plain_torch(shape, dtype):
    x, c = make(shape, dtype)
    plain = sum(w * each for w, each in zip(c, x, strict=True))
    result = rk_adjoint(x, c)
    assert result.dtype == dtype and result.shape == x[0].shape
    if result.numel():
        error = (result.double() - exact(x, c)).abs().max()
        allowed = 2 * (plain.double() - exact(x, c)).abs().max()
        assert error <= allowed + torch.finfo(dtype).eps * exact(x, c).abs().max()


@pytest.mark.parametrize("terms", [1, 2, 3, 4, 32, 33, 100])
def test_any_number_of_terms(terms):
    x, c = make((1500,), terms=terms)
    torch.testing.assert_close(rk_adjoint(x, c), exact(x, c))


def test_views_with_offset_and_strides_are_read_right():
    buffer = torch.arange(3000, dtype=torch.float32)
    x = [buffer[1:1024], buffer[7:2053:2]]
    torch.testing.assert_close(rk_adjoint(x, [0.5, -2.0]), 0.5 * x[0] - 2 * x[1])
    matrix = torch.randn(33, 17).t()
    torch.testing.assert_close(rk_adjoint([matrix, matrix], [2.0, 1.0]), 3 * matrix)


def test_complex_tensors():
    x = [torch.randn(5, dtype=torch.complex128) for _ in range(3)]
    torch.testing.assert_close(rk_adjoint(x, [1.0, 2.0, -1.0]), x[0] + 2 * x[1] - x[2])


def test_same_bits_as_a_stage_whose_state_is_zero():
    from fastnode.ops.rk_stage import rk_stage

    for dtype in DTYPES:
        x, c = make((1023,), dtype)
        assert torch.equal(rk_adjoint(x, c), rk_stage(torch.zeros_like(x[0]), x, c))


def test_gradients():
    x, c = make((4, 3), terms=3)
    inputs = [each.requires_grad_() for each in x]
    assert torch.autograd.gradcheck(lambda *x: rk_adjoint(x, c), inputs)
    assert torch.autograd.gradgradcheck(lambda *x: rk_adjoint(x, c), inputs)


@compiled
def test_opcheck():
    x, c = make((4, 3), torch.float32, terms=2)
    for args in ((x, c), ([each.requires_grad_() for each in x], c)):
        torch.library.opcheck(torch.ops.fastnode.rk_adjoint.default, args)


def test_compiles_without_a_break():
    x, c = make((64,), torch.float32)
    function = torch.compile(lambda *x: rk_adjoint(x, c), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(function(*x), rk_adjoint_reference(x, c))


@pytest.mark.parametrize(
    ("x", "c", "error"),
    [
        ([], [], ValueError),
        ([torch.ones(3)], [1.0, 2.0], ValueError),
        ([torch.ones(3), torch.ones(4)], [1.0, 2.0], ValueError),
        ([torch.ones(3), torch.ones(3).double()], [1.0, 2.0], TypeError),
    ],
)
def test_bad_arguments_are_named(x, c, error):
    with pytest.raises(error, match="x"):
        rk_adjoint(x, c)
    with pytest.raises(error, match="x"):
        rk_adjoint_reference(x, c)
